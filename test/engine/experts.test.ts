import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { FastLanguageModel } from '../../engine/fastLanguageModel.ts'
import { greedy } from '../../engine/generate/sampler.ts'
import { openTensorSource } from '../../engine/io/tensorSource.ts'
import { prepareRun } from '../../engine/train/prepareRun.ts'
import { allLogits, balance, scores } from '../../engine/verify/passes.ts'
import { packedSuffix, unpackCase } from '../golden/packedCase.ts'
import {
  adapterBytes,
  assertClose,
  failure,
  losses,
  makeRecipe,
  metricsOf,
  ownRuntimeFolder,
  relativeError,
  temporaryFolder,
  train,
  type RecipeSections,
} from './support.ts'

/** A tokenizer of single characters: the packed models know 96 tokens. */
function writeTokenizer(folder: string): void {
  const characters = [...' abcdefghijklmnopqrstuvwxyz.,;:!?\'"-ABCDEFGHIJKLMNOPQRSTUVWXYZ']
  const special = ['<pad>', '<s>', '</s>']
  writeFileSync(
    join(folder, 'tokenizer.json'),
    JSON.stringify({
      version: '1.0',
      truncation: null,
      padding: null,
      normalizer: null,
      pre_tokenizer: null,
      post_processor: null,
      decoder: { type: 'Fuse' },
      added_tokens: special.map((content, id) => ({
        id,
        content,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      })),
      model: {
        type: 'BPE',
        unk_token: '<pad>',
        fuse_unk: false,
        byte_fallback: false,
        merges: [],
        vocab: Object.fromEntries([...special, ...characters].map((token, id) => [token, id])),
      },
    }),
  )
  writeFileSync(
    join(folder, 'tokenizer_config.json'),
    JSON.stringify({ tokenizer_class: 'PreTrainedTokenizerFast', pad_token: '<pad>', bos_token: '<s>', eos_token: '</s>' }),
  )
}

describe('experts trained by a recipe', function () {
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)
  const mixtral = join(folder, 'mixtral')
  const probes = [Int32Array.of(1, 10, 14, 20, 5, 3), Int32Array.from({ length: 30 }, (_, i) => 3 + ((i * 37) % 60))]
  const both = ['mlp.experts.gate_up_proj', 'mlp.experts.down_proj']

  before(async () => {
    await unpackCase(join(import.meta.dirname, `../fixtures/golden/tiny-mixtral${packedSuffix}`), mixtral)
    writeTokenizer(mixtral)
  })

  const recipe = (name: string, sections: RecipeSections = {}) =>
    makeRecipe(join(folder, name), {
      ...sections,
      model: mixtral,
      training: { max_seq_length: 64, max_steps: 3, ...sections.training },
      lora: { target_modules: ['q_proj'], target_parameters: both, ...sections.lora },
    })

  async function opened<T>(
    modelName: string,
    use: (generator: Awaited<ReturnType<typeof FastLanguageModel.forInference>>) => Promise<T>,
  ): Promise<T> {
    const generator = await FastLanguageModel.forInference({ modelName, threads: 1 })
    try {
      return await use(generator)
    } finally {
      generator.dispose()
    }
  }
  const logitsOf = (saved: string) => opened(saved, ({ model }) => allLogits(model, model.trained, probes))

  it('are saved as PEFT names them, load back, and merge into a model that answers alike', async () => {
    const dir = await train(recipe('whole', { training: { learning_rate: 2e-2 }, save: { method: ['lora', 'merged_16bit'] } }))
    const config = JSON.parse(readFileSync(join(dir, 'adapter', 'adapter_config.json'), 'utf8')) as Record<string, unknown>
    assert.deepEqual([config.target_modules, config.target_parameters, config.r], [['q_proj'], both, 4])
    const { tensors } = await openTensorSource(join(dir, 'adapter', 'adapter_model.safetensors'))
    const experts = 'base_model.model.model.layers.0.mlp.experts'
    assert.deepEqual(tensors.get(`${experts}.base_layer.lora_A.weight`)!.shape, [24, 32], 'gate and up: 6 experts of rank 4')
    assert.deepEqual(tensors.get(`${experts}.lora_B.weight`)!.shape, [32, 24], 'down')
    const [base, tuned, merged] = [
      await logitsOf(mixtral),
      await logitsOf(join(dir, 'adapter')),
      await logitsOf(join(dir, 'merged')),
    ]
    assert.ok(relativeError(tuned, base) > 1e-2, 'three steps changed the answers')
    assertClose(merged, tuned, 2e-2, 'merged')
    const [text] = await opened(join(dir, 'adapter'), (generator) =>
      generator.complete([probes[0]!], { maxNewTokens: 6, sampling: greedy, seed: 0, stop: [] }),
    )
    assert.ok(text!.newTokens > 0)
  })

  for (const bits of [4, 8] as const)
    it(`are trained on and beside experts in ${bits} bits, and merge into a model that answers as the trained one`, async () => {
      const method = bits === 4 ? ['lora', 'merged_16bit', 'merged_4bit'] : ['lora', 'merged_16bit']
      const dir = await train(
        recipe(`bits${bits}`, {
          training: { [`load_in_${bits}bit`]: true, learning_rate: 2e-2, max_steps: 6 },
          save: { method },
        }),
      )
      const steps = losses(dir)
      assert.ok(
        steps.slice(3).reduce((sum, loss) => sum + loss, 0) < steps.slice(0, 3).reduce((sum, loss) => sum + loss, 0),
        steps.join(),
      )
      const { tensors } = await openTensorSource(join(dir, 'adapter', 'adapter_model.safetensors'))
      assert.ok(
        ['q_proj.lora_A', 'mlp.experts.base_layer.lora_B', 'mlp.experts.lora_A'].every((part) =>
          [...tensors.keys()].some((name) => name.includes(part)),
        ),
      )
      const merged = await logitsOf(join(dir, 'merged'))
      assert.ok(relativeError(merged, await logitsOf(mixtral)) > 1e-2, 'training changed the answers')
      if (bits === 4) assert.ok(relativeError(await logitsOf(join(dir, 'merged-4bit')), merged) < 0.3)
    })

  it('go on from a checkpoint as if they had not stopped', async () => {
    const straight = await train(recipe('straight', { training: { max_steps: 4 } }))
    const first = await train(recipe('halves', { training: { max_steps: 4, save_steps: 2, save_total_limit: 5 } }))
    const second = await train(
      recipe('again', { training: { max_steps: 4, resume_from: join(first, 'checkpoints', 'step-000002') } }),
    )
    assert.deepEqual(adapterBytes(second), adapterBytes(straight))
    assert.deepEqual(losses(second), losses(straight).slice(2))
  })

  it('follow target_modules when target_parameters is empty, and keep the patterns of the two ranks', async () => {
    const dir = await train(
      recipe('named', { lora: { target_modules: ['q_proj', 'gate_proj', 'up_proj', 'down_proj'], target_parameters: [] } }),
    )
    const config = JSON.parse(readFileSync(join(dir, 'adapter', 'adapter_config.json'), 'utf8')) as Record<string, unknown>
    assert.deepEqual([config.target_parameters, config.rank_pattern], [both, { '.*\\.gate_up_proj': 8 }])
    const [base, tuned] = [await logitsOf(mixtral), await logitsOf(join(dir, 'adapter'))]
    assert.ok(relativeError(tuned, base) > 1e-3)
  })

  it('take the default target_modules for the dense layers, and refuse parameters that are not there', async () => {
    const { model } = await prepareRun(
      recipe('default', { lora: { target_modules: undefined, target_parameters: ['experts.down_proj'] } }),
    )
    assert.deepEqual(
      new Set(model.patched.modules.map(({ module }) => module.split('.').at(-1))),
      new Set(['q_proj', 'k_proj', 'v_proj', 'o_proj', 'experts']),
    )
    await assert.rejects(
      prepareRun(recipe('wrong', { lora: { target_parameters: ['mlp.experts.w1'] } })),
      failure('RECIPE', /target_parameters: this model has no mlp\.experts\.w1/, /mlp\.experts\.down_proj/),
    )
  })

  it('report a loss that contains the routers’ balance loss', async () => {
    const asked = recipe('balance', { training: { max_steps: 1 } })
    const dir = await train(asked)
    const prepared = await prepareRun(asked)
    const rows = prepared.batches(0)
    const total = rows.reduce((sum, { labels }) => sum + labels.length, 0)
    const expected = await opened(mixtral, async ({ model }) => {
      let loss = 0
      for (const { ids, qStart, labels, labelIndex } of rows) {
        const wanted = new Set(labelIndex)
        const texts = Array.from(qStart.slice(1), (end, i) => ({ start: qStart[i]!, ids: ids.subarray(qStart[i], end) })).map(
          ({ start, ids: row }) => ({
            ids: row,
            weight: (position: number) => (wanted.has(start + position - 1) ? 1 / total : undefined),
          }),
        )
        loss += (await scores(model, model.base, texts)).reduce((sum, nll) => sum + nll, 0) / total
        loss += (0.1 * (await balance(model, model.base, texts)) * labels.length) / total
      }
      return loss
    })
    const [step] = metricsOf(dir).filter(({ type }) => type === 'step')
    assertClose([step!.loss as number], [expected], 1e-5, 'loss')
  })
})
