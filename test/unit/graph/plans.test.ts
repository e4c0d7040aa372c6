import { strict as assert } from 'node:assert'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { cpuTarget, cudaTarget } from '../../../engine/graph/target.ts'
import type { Recompute } from '../../../engine/graph/backward.ts'
import { commandSignatures } from '../../../engine/graph/commands.ts'
import type { Command } from '../../../engine/graph/graph.ts'
import { encodePlan, numbersPerTensor } from '../../../engine/graph/encodePlan.ts'
import { printPlan } from '../../../engine/graph/plan.ts'
import { logitsPlan, trainingPlan, type StepPlan } from '../../../engine/model/stepGraph.ts'
import { tinyConfig, tinyMixture, tinyModel } from './tinyModel.ts'

const snapshots = join(dirname(fileURLToPath(import.meta.url)), 'snapshots')
const capacity = { tokens: 6, labelled: 4, sequences: 2 }
const attentionAndMlp = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']

function plan(config: Record<string, unknown>, train: readonly string[] | 'full', recompute: Recompute, dropout = 0): StepPlan {
  const { spec, weights } = tinyModel(config, train, dropout)
  return trainingPlan({ spec, weights, capacity, target: cpuTarget(), dropout: dropout > 0, recompute: () => recompute })
}

/** Compares with the stored text; UPDATE_SNAPSHOTS=1 writes it anew, to be read before it is committed. */
function snapshot(name: string, text: string): void {
  const file = join(snapshots, `${name}.txt`)
  if (process.env.UPDATE_SNAPSHOTS === '1' || !existsSync(file)) {
    assert.equal(process.env.UPDATE_SNAPSHOTS, '1', `${file} does not exist; run with UPDATE_SNAPSHOTS=1`)
    writeFileSync(file, `${text}\n`)
  }
  assert.equal(
    text,
    readFileSync(file, 'utf8').trimEnd(),
    `the plan ${name} changed; if that is meant, run with UPDATE_SNAPSHOTS=1 and read the difference`,
  )
}

describe('plans for a GPU', () => {
  it('ask for TF32 in products of the model with fp32 activations, and in no other numbers', () => {
    const { spec, weights } = tinyModel(tinyConfig, attentionAndMlp, 0)
    const precisions = (compute: 'float32' | 'tfloat32' | 'float16') => {
      const { commands } = trainingPlan({
        spec,
        weights,
        capacity,
        target: cudaTarget(compute),
        dropout: false,
        recompute: () => 'none',
      }).plan
      return {
        gemm: commands.filter(({ name }) => name === 'gemm').map(({ ints }) => ints[2]),
        loraGrad: commands.filter(({ name }) => name === 'loraGrad').map(({ ints }) => ints[0]),
        headLoss: commands.filter(({ name }) => name === 'headLoss').map(({ ints }) => ints[0]),
      }
    }
    const exact = precisions('float32')
    assert.ok(exact.gemm.length > 20 && exact.loraGrad.length > 3 && exact.headLoss.length === 1)
    assert.ok(
      [...exact.gemm, ...exact.loraGrad, ...exact.headLoss, ...precisions('float16').gemm].every((precision) => precision === 0),
    )
    assert.deepEqual(precisions('tfloat32'), {
      gemm: exact.gemm.map(() => 2),
      loraGrad: exact.loraGrad.map(() => 2),
      headLoss: [2],
    })
  })

  it('scale the loss in fp16 alone', () => {
    const { spec, weights } = tinyModel({ ...tinyMixture, output_router_logits: true }, ['q_proj'], 0)
    const scaled = (compute: 'float32' | 'bfloat16' | 'float16') =>
      trainingPlan({
        spec,
        weights,
        capacity,
        target: cudaTarget(compute),
        dropout: false,
        recompute: () => 'none',
      }).plan.commands.filter(({ name }) => name === 'scaleLoss').length
    assert.deepEqual(
      (['float32', 'bfloat16', 'float16'] as const).map(scaled),
      [0, 0, 2],
      'the weights of the labels, and that of the balance loss',
    )
  })
})

describe('printed plans of a tiny model', () => {
  for (const recompute of ['none', 'mlp', 'layer'] as const)
    it(`forward and backward, recompute ${recompute}`, () =>
      snapshot(`llama-lora-${recompute}`, printPlan(plan(tinyConfig, attentionAndMlp, recompute).plan)))
  it('full fine-tuning', () =>
    snapshot('llama-full', printPlan(plan({ ...tinyConfig, num_hidden_layers: 1 }, 'full', 'none').plan)))
  it('dropout gives each projection its own input', () =>
    snapshot(
      'llama-dropout',
      printPlan(plan({ ...tinyConfig, num_hidden_layers: 1 }, ['q_proj', 'down_proj'], 'none', 0.1).plan),
    ))
  it('experts with adapters and a balance loss', () =>
    snapshot(
      'mixtral-lora',
      printPlan(plan({ ...tinyMixture, output_router_logits: true }, ['q_proj', 'gate_proj', 'down_proj'], 'mlp').plan),
    ))
  it('generation with a cache', () => {
    const { spec, weights } = tinyModel({ ...tinyConfig, num_hidden_layers: 1 }, attentionAndMlp)
    snapshot('llama-cache', printPlan(logitsPlan({ spec, weights, capacity, target: cpuTarget(), cache: { rows: 16 } }).plan))
  })
})

const names = (commands: readonly Command[]) => commands.map(({ name }) => name)
const count = (step: StepPlan, name: string) => names(step.plan.commands).filter((other) => other === name).length

describe('recomputation', () => {
  const large = { ...tinyConfig, num_hidden_layers: 6 }
  const [none, mlp, layer] = (['none', 'mlp', 'layer'] as const).map((recompute) => plan(large, attentionAndMlp, recompute)) as [
    StepPlan,
    StepPlan,
    StepPlan,
  ]

  it('takes less memory the more is replayed', () => {
    assert.ok(
      none.plan.activationBytes > mlp.plan.activationBytes && mlp.plan.activationBytes > layer.plan.activationBytes,
      [none, mlp, layer].map(({ plan: { activationBytes } }) => activationBytes).join(),
    )
  })
  it('replays attention only for whole layers, and never the last product of a half', () => {
    assert.equal(count(none, 'attention'), 6)
    assert.equal(count(mlp, 'attention'), 6)
    assert.equal(count(layer, 'attention'), 12)
    // With the MLP: A of gate and up, gate and up, A of down. With the whole layer also A of q, k and v, these, A of o, and o.
    assert.deepEqual(
      [mlp, layer].map((step) => (count(step, 'gemm') - count(none, 'gemm')) / 6),
      [3, 7],
    )
  })
  it('leaves the forward pass as it is', () => {
    const forward = (step: StepPlan) => names(step.plan.commands.slice(0, step.forwardCommands))
    assert.deepEqual(forward(layer), forward(none))
  })
})

describe('every plan', () => {
  const configs = { llama: tinyConfig, mixtral: tinyMixture }
  for (const [name, config] of Object.entries(configs))
    it(`of ${name} gives each command the operands that it takes`, () => {
      for (const train of [['q_proj', 'down_proj'], 'full'] as const)
        for (const { name: command, tensors, ints, floats } of plan(config, train, 'layer').plan.commands) {
          const signature = commandSignatures[command]
          const fixed = signature.tensors.filter((operand) => !operand.startsWith('…'))
          assert.ok(tensors.length >= fixed.length, command)
          fixed.forEach((operand, i) =>
            assert.ok(tensors[i] !== undefined || operand.endsWith('?'), `${command}: ${operand} is absent`),
          )
          assert.ok(ints.length >= signature.ints.filter((word) => !word.startsWith('…')).length, command)
          assert.ok(floats.length >= signature.floats.filter((word) => !word.startsWith('…')).length, command)
        }
    })
  it('names no weight twice and keeps offsets within their arenas when encoded', () => {
    const { plan: memory } = plan(tinyConfig, attentionAndMlp, 'none')
    const encoded = encodePlan(memory)
    const activations = encoded.arenas.indexOf('activations')
    for (let at = 0; at < encoded.tensors.length; at += numbersPerTensor) {
      const [, buffer, offset, rows, cols, stride] = encoded.tensors.subarray(at, at + 6)
      if (buffer === activations) assert.ok(offset! + ((rows! - 1) * stride! + cols!) * 4 <= memory.activationBytes)
    }
    const rows = encoded.tensors.length / numbersPerTensor
    assert.equal(
      new Set(
        Array.from({ length: rows }, (_, i) => encoded.tensors.subarray(i * numbersPerTensor, (i + 1) * numbersPerTensor).join()),
      ).size,
      rows,
    )
  })
})
