import { strict as assert } from 'node:assert'
import { archSpec, families } from '../../../engine/model/registry.ts'
import { weightTable } from '../../../engine/model/weightTable.ts'
import { loraModules, patchReport } from '../../../engine/patch/lora.ts'
import { tinyConfig, tinyMixture } from '../graph/tinyModel.ts'

const of = (architecture: string, more: Record<string, unknown> = {}) =>
  archSpec({ ...tinyConfig, num_hidden_layers: 6, architectures: [architecture], ...more })
const inverse = (spec: ReturnType<typeof of>, kind: 'full' | 'window' = 'full', length = 1) => [
  ...spec.rope[kind].table(length).inverse,
]

describe('archSpec', () => {
  it('counts null as absent, and knows what an absent key means in each family', () => {
    assert.equal(of('LlamaForCausalLM', { head_dim: null }).headDim, 4)
    assert.equal(of('Qwen3ForCausalLM').headDim, 128)
    assert.equal(of('GemmaForCausalLM').headDim, 256)
    for (const [name, tied] of [
      ['LlamaForCausalLM', false],
      ['GemmaForCausalLM', true],
      ['CohereForCausalLM', true],
      ['SmolLM3ForCausalLM', true],
      ['GraniteForCausalLM', false],
    ] as const)
      assert.equal(of(name).tied, tied, name)
    assert.equal(archSpec({ ...tinyConfig, architectures: ['Phi3ForCausalLM'], rms_norm_eps: undefined }).norm.eps, 1e-5)
  })

  it('reads windows as each family means them', () => {
    const kinds = (name: string, more: Record<string, unknown> = {}) =>
      of(name, more)
        .attention.kinds.map((kind) => kind[0])
        .join('')
    assert.equal(kinds('MistralForCausalLM'), 'wwwwww')
    assert.equal(kinds('MistralForCausalLM', { sliding_window: null }), 'ffffff')
    assert.equal(kinds('Qwen2ForCausalLM', { sliding_window: 8, max_window_layers: 4 }), 'ffffff')
    assert.equal(kinds('Qwen2ForCausalLM', { use_sliding_window: true, sliding_window: 8, max_window_layers: 4 }), 'ffffww')
    assert.equal(kinds('Gemma2ForCausalLM'), 'wfwfwf')
    assert.equal(kinds('Gemma3ForCausalLM'), 'wwwwwf')
    assert.equal(kinds('Cohere2ForCausalLM'), 'wwwfww')
    assert.equal(kinds('Phi3ForCausalLM', { sliding_window: null }), 'ffffff')
    assert.equal(
      kinds('Gemma3ForCausalLM', { layer_types: ['full_attention', ...Array<string>(5).fill('sliding_attention')] }),
      'fwwwww',
    )
  })

  it('gives Cohere 2 and SmolLM3 layers without rotation', () => {
    assert.deepEqual(of('Cohere2ForCausalLM').rope.layers, ['window', 'window', 'window', 'none', 'window', 'window'])
    assert.deepEqual(of('SmolLM3ForCausalLM').rope.layers, ['full', 'full', 'full', 'none', 'full', 'full'])
    assert.deepEqual(of('SmolLM3ForCausalLM', { no_rope_layers: [0, 1, 1, 1, 1, 0] }).rope.layers, [
      'none',
      'full',
      'full',
      'full',
      'full',
      'none',
    ])
  })

  it('reads old and new forms of Gemma 3’s two bases alike', () => {
    const old = of('Gemma3ForCausalLM', {
      head_dim: 8,
      rope_theta: 1e6,
      rope_local_base_freq: 1e4,
      rope_scaling: { rope_type: 'linear', factor: 8 },
    })
    const now = of('Gemma3ForCausalLM', {
      head_dim: 8,
      rope_parameters: {
        full_attention: { rope_type: 'linear', factor: 8, rope_theta: 1e6 },
        sliding_attention: { rope_type: 'default', rope_theta: 1e4 },
      },
    })
    for (const kind of ['full', 'window'] as const) assert.deepEqual(inverse(old, kind), inverse(now, kind))
    assert.equal(inverse(now)[0], 1 / 8)
    assert.equal(inverse(now, 'window')[0], 1)
  })

  it('takes "su" and, for Phi-3, "yarn" for longrope, decided by each sequence’s length', () => {
    const scaling = { short_factor: [1, 1], long_factor: [2, 4] }
    for (const type of ['longrope', 'su', 'yarn']) {
      const spec = of('Phi3ForCausalLM', {
        max_position_embeddings: 64,
        original_max_position_embeddings: 16,
        rope_scaling: { type, ...scaling },
      })
      assert.deepEqual([inverse(spec, 'full', 16)[0], inverse(spec, 'full', 17)[0]], [1, 0.5], type)
      assert.equal(spec.rope.full.table(1).factor, Math.sqrt(1 + Math.log(4) / Math.log(16)))
    }
  })

  it('turns caps off only by an explicit null', () => {
    assert.deepEqual([of('Gemma2ForCausalLM').attention.softcap, of('Gemma2ForCausalLM').finalSoftcap], [50, 30])
    assert.deepEqual(
      [of('Gemma2ForCausalLM', { attn_logit_softcapping: null }).attention.softcap, of('Gemma3ForCausalLM').attention.softcap],
      [0, 0],
    )
  })

  it('reads experts under either name and the balance loss only when it is on', () => {
    const moe = (more: Record<string, unknown>) =>
      of('Qwen3MoeForCausalLM', { num_experts_per_tok: 2, moe_intermediate_size: 8, ...more }).moe!
    assert.equal(moe({ num_experts: 4 }).experts, 4)
    assert.equal(moe({ num_local_experts: 5 }).experts, 5)
    assert.deepEqual(moe({ num_experts: 4, mlp_only_layers: [1], decoder_sparse_step: 2 }).layers, [
      false,
      false,
      false,
      true,
      false,
      true,
    ])
    assert.equal(moe({ num_experts: 4, router_aux_loss_coef: 0.5 }).balance, 0)
    assert.equal(moe({ num_experts: 4, router_aux_loss_coef: 0.5, output_router_logits: true }).balance, 0.5)
  })

  it('refuses what it cannot do with a message that names the key', () => {
    const refused = (config: Record<string, unknown>, message: RegExp) =>
      assert.throws(() => archSpec({ ...tinyConfig, ...config }, 'model/config.json'), { message })
    refused({ architectures: ['BertModel'] }, /BertModel is not supported/)
    refused({ architectures: undefined }, /model\/config\.json: "architectures" is missing/)
    refused({ hidden_size: 'big' }, /"hidden_size" should be a number, but is "big"/)
    refused({ hidden_size: undefined }, /"hidden_size" is missing/)
    refused({ num_key_value_heads: 3 }, /not a multiple of num_key_value_heads 3/)
    refused({ hidden_act: 'mystery' }, /activation "mystery" is not supported/)
    refused({ rope_scaling: { type: 'spiral' } }, /rope type "spiral" is not supported/)
    refused({ architectures: ['Gemma2ForCausalLM'], layer_types: ['full_attention'] }, /"layer_types" has 1 entries for 2 layers/)
    refused({ ...tinyMixture, num_experts_per_tok: 9 }, /"num_experts_per_tok" is 9, but there are 4 experts/)
  })

  it('serves each architecture once', () => {
    const names = families.flatMap(({ architectures }) => architectures)
    assert.equal(new Set(names).size, names.length)
  })
})

describe('weightTable', () => {
  it('leaves out the head of a tied model and has no name twice', () => {
    for (const { architectures } of families) {
      const spec = of(architectures[0]!, { num_local_experts: 4, num_experts_per_tok: 2 })
      const entries = weightTable(spec)
      const names = entries.flatMap(({ pieces }) => pieces.map(({ name }) => name))
      assert.equal(new Set(names).size, names.length, architectures[0])
      assert.equal(
        entries.some(({ id }) => id === 'head'),
        !spec.tied,
      )
      for (const { rows, cols, pieces, kind } of entries)
        assert.equal(
          pieces.reduce((sum, piece) => sum + piece.rows, 0),
          kind === 'norm' || kind === 'bias' ? cols : rows,
        )
    }
  })

  it('takes experts one by one, or stacked as the file has them', () => {
    const spec = archSpec(tinyMixture)
    const stacked = 'model.layers.0.mlp.experts.gate_up_proj'
    const [single, whole] = [weightTable(spec), weightTable(spec, (name) => name === stacked)].map((table) =>
      table.find(({ id }) => id === 'layers.0.expertGateUp')!,
    )
    assert.deepEqual(
      single!.pieces.slice(0, 3).map(({ name, row }) => `${name} ${row}`),
      [
        'model.layers.0.block_sparse_moe.experts.0.w1.weight 0',
        'model.layers.0.block_sparse_moe.experts.0.w3.weight 16',
        'model.layers.0.block_sparse_moe.experts.1.w1.weight 32',
      ],
    )
    assert.deepEqual(whole!.pieces, [{ name: stacked, row: 0, rows: 128, shape: [4, 32, 8] }])
  })
})

describe('loraModules on experts', () => {
  const entries = weightTable(archSpec(tinyMixture))
  const options = { r: 2, alpha: 4, dropout: 0, rslora: false }
  const names = (more: object) =>
    loraModules(entries, { ...options, targets: ['q_proj'], ...more })
      .map(({ module }) => module)
      .filter((module) => module.includes('experts'))
  const experts = 'model.layers.0.mlp.experts'

  it('has the names that PEFT gives: the last parameter of a module stands outside', () => {
    assert.deepEqual(names({ targetParameters: ['mlp.experts.down_proj', 'mlp.experts.gate_up_proj'] }), [
      `${experts}.base_layer`,
      experts,
    ])
    assert.deepEqual(names({ targetParameters: ['experts.gate_up_proj'] }), [experts])
    assert.deepEqual(names({ targetParameters: ['mlp.experts.down_proj'] }), [experts])
  })
  it('takes the usual target names for the experts, too, but not where parameters were listed', () => {
    assert.deepEqual(names({ targets: ['q_proj', 'gate_proj', 'up_proj', 'down_proj'] }), [`${experts}.base_layer`, experts])
    assert.throws(() => names({ targets: ['gate_proj'], targetParameters: [] }), { message: /this model has no gate_proj/ })
  })
  it('refuses dropout and parameters that do not exist', () => {
    assert.throws(() => loraModules(entries, { ...options, dropout: 0.1, targets: ['down_proj'] }), {
      message: /not possible with adapters on experts/,
    })
    assert.throws(() => names({ targetParameters: ['mlp.experts.sideways'] }), {
      message: /lora\.target_parameters: this model has no mlp\.experts\.sideways/,
    })
  })
  it('reports fused experts', () => {
    const report = (targets: string[]) => patchReport(entries, loraModules(entries, { ...options, targets }), 1)
    assert.equal(report(['q_proj', 'gate_proj', 'up_proj', 'down_proj']).mlp, 1)
    assert.deepEqual(
      report(['q_proj']).notFused.map(({ group, reason }) => `${group}: ${reason}`),
      ['QKV: k_proj, v_proj without LoRA', 'O: not a target', 'MLP: not a target'],
    )
  })
})
