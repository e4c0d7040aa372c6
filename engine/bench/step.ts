import { dtypeCode, isQuantised } from '../graph/dtype.ts'
import type { Storage } from '../graph/graph.ts'
import { quant4Layout, quantBlock } from '../graph/quant4.ts'
import { quant8Layout } from '../graph/quant8.ts'
import type { Compute, Target } from '../graph/target.ts'
import { freeBytes, freeHostBytes, targetOf } from '../runtime/chooseDevice.ts'
import { GpuMeter } from '../runtime/gpuMeter.ts'
import { gpuOverhead } from '../runtime/gpuOverhead.ts'
import { LoadedModel, reserveWeights } from '../runtime/loadedModel.ts'
import { patchModel, type PatchedModel, type Training } from '../runtime/patchedModel.ts'
import { int8, nf4 } from '../runtime/quantisedWeights.ts'
import { Runtime, type DeviceChoice } from '../runtime/runtime.ts'
import { Trainer, type LossBatch, type StepOutcome } from '../train/trainer.ts'
import type { OptimizerKind } from '../train/optimizerState.ts'
import { planTraining, type Checkpointing, type TrainingPlan } from '../train/trainingPlan.ts'
import { instructionSteps, madeUpBatch, packSteps } from './batches.ts'
import { commandBytes, commandFlops, stepFlops } from './flops.ts'
import { measureGemm } from './gemm.ts'
import { shapeModel } from './shapes.ts'

export interface StepBenchOptions {
  readonly shape: string
  /** Tokens of each sequence; ignored with instruction data. */
  readonly tokens: number
  /** Sequences of a step. */
  readonly sequences: number
  /** Sequences of the lengths of everyday instruction data, packed, instead of one length. */
  readonly instruction: boolean
  readonly steps: number
  readonly device: DeviceChoice
  readonly compute: Compute | 'auto'
  readonly checkpointing: Checkpointing
  readonly training: Training
  /** Of frozen linear layers; default: 16. */
  readonly bits?: 4 | 8 | undefined
  readonly optimizer?: OptimizerKind
  /** Use only so many layers of the shape. */
  readonly layers?: number
  /** Also tell the seconds of each kind of command. */
  readonly profile: boolean
}

export interface StepBench {
  readonly shape: string
  readonly tokens: number
  readonly sequences: number
  readonly instruction: boolean
  readonly device: string
  readonly numbers: Target['activation'] | 'bf16 products' | 'tf32 products'
  readonly losses: readonly number[]
  /** Of a step on average, without the first few. */
  readonly seconds: number
  /** Real tokens, without padding. */
  readonly tokensPerSecond: number
  readonly gflops: number
  /** GFLOP/s of a large product in the same types, measured just before. */
  readonly gemmPeak: number
  readonly share: number
  readonly plannedBytes: number
  /** Of the process on its GPU as the driver counts it: context and modules too. */
  readonly measuredBytes?: number
  readonly plan: string
  /** Seconds by command, largest first. */
  readonly commands: readonly CommandTotal[]
}

export interface CommandTotal {
  readonly name: string
  readonly count: number
  readonly seconds: number
  readonly flops: number
  readonly bytes: number
}

/** Steps that are not counted: the first runs of a GPU's commands are not graphs yet. */
const warmUp = 3

const peakSize = { cpu: 2048, cuda: 8192 } as const

/** Whole optimizer steps of the trainer on made-up weights; the loss of a repeated batch has to fall. */
export async function benchStep(options: StepBenchOptions): Promise<StepBench> {
  const { device } = options
  const target = targetOf(device, options.compute)
  const meter = device.kind === 'cuda' ? new GpuMeter(device.index) : undefined
  const size = peakSize[device.kind]
  const peak = await measureGemm({ m: size, n: size, k: size, mode: 0, target, device })
  const patched = patchModel(
    shapeModel(options.shape, 'BF16', options.layers),
    options.training,
    target,
    options.bits === 4 ? { quantisation: nf4 } : options.bits === 8 ? { quantisation: int8 } : {},
  )
  const { vocabulary } = patched.model.spec
  const samples = options.instruction ? instructionSteps(options.steps, options.sequences, vocabulary) : []
  const tokensOf = (step: (typeof samples)[number]) => step.reduce((sum, { ids }) => sum + ids.length, 0)
  const longestStep = options.instruction ? Math.max(...samples.map(tokensOf)) : options.tokens * options.sequences
  const plan = planTraining(patched, {
    checkpointing: options.checkpointing,
    optimizer: options.optimizer ?? 'adamw',
    longestSample: options.instruction ? 1024 : longestStep,
    longestStep,
    sequences: options.sequences,
    evaluates: false,
    availableBytes: freeBytes(device),
    availableHostBytes: freeHostBytes(device),
    threads: device.kind === 'cpu' ? device.threads : 1,
    gpuOverhead: await gpuOverhead(device),
  })
  const runtime = new Runtime(device)
  try {
    const trainer = await madeUpTrainer(patched, plan, runtime, options.optimizer ?? 'adamw')
    const repeated = madeUpBatch(options.tokens, vocabulary, options.sequences)
    const steps: LossBatch[][] = options.instruction
      ? packSteps(samples, plan.training.capacity.tokens)
      : Array.from({ length: options.steps }, () => [repeated])
    const { losses, seconds, tokens } = await timeSteps(trainer, steps, device.kind === 'cuda')
    const measuredBytes = meter?.bytes
    const gflops =
      ((stepFlops(patched, options.instruction ? 150 : options.tokens) / (options.instruction ? 150 : options.tokens)) *
        (tokens / seconds)) /
      1e9
    return {
      shape: options.shape,
      tokens: options.tokens,
      sequences: options.sequences,
      instruction: options.instruction,
      device: device.kind === 'cpu' ? `${device.threads} threads` : `cuda:${device.index}`,
      numbers:
        device.kind === 'cpu' && target.precision === 1
          ? 'bf16 products'
          : target.precision === 2
            ? 'tf32 products'
            : target.activation,
      losses,
      seconds,
      tokensPerSecond: tokens / seconds,
      gflops,
      gemmPeak: peak.gflops,
      share: gflops / peak.gflops,
      plannedBytes: plan.totalBytes,
      plan: plan.summary,
      ...(measuredBytes === undefined ? {} : { measuredBytes }),
      commands: options.profile ? byCommand(plan, await trainer.profile(steps[0]![0]!)) : [],
    }
  } finally {
    runtime.dispose()
  }
}

/**
 * Runs the steps; mean seconds and tokens of one, without the first few, which are waited for one by one. `ahead`: each of the others is
 * started before the last one is waited for, as in a run on a GPU.
 */
async function timeSteps(
  trainer: Trainer,
  steps: readonly LossBatch[][],
  ahead: boolean,
): Promise<{ losses: number[]; seconds: number; tokens: number }> {
  const rates = { default: 1e-3, embedding: 1e-3 }
  const first = steps.length > 2 * warmUp ? warmUp : Math.min(1, steps.length - 1)
  const outcomes: StepOutcome[] = []
  for (let index = 0; index < first; ++index) outcomes.push(await trainer.step(index, steps[index]!, rates))
  const began = performance.now()
  const started: Promise<StepOutcome>[] = []
  for (let index = first; index < steps.length; ++index) {
    started.push((await trainer.start(index, steps[index]!, rates)).outcome)
    if (started.length > (ahead ? 1 : 0)) outcomes.push(await started.shift()!)
  }
  for (const outcome of started) outcomes.push(await outcome)
  const counted = steps.length - first
  const tokens = outcomes.slice(first).reduce((sum, outcome) => sum + outcome.tokens, 0)
  return {
    losses: outcomes.map(({ loss }) => loss),
    seconds: (performance.now() - began) / 1000 / counted,
    tokens: tokens / counted,
  }
}

/** A trainer of a model with random weights, as benches set it. */
export async function madeUpTrainer(
  patched: PatchedModel,
  plan: TrainingPlan,
  runtime: Runtime,
  kind: OptimizerKind,
): Promise<Trainer> {
  const model = await madeUpModel(patched, runtime)
  return new Trainer(model, plan, { kind, seed: 1, maxGradNorm: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.01 })
}

/** A model with random weights: norms near 1, everything else small. */
export async function madeUpModel(patched: PatchedModel, runtime: Runtime): Promise<LoadedModel> {
  const fill = async (id: string, index: number) => {
    const weight = patched.arena.weights.get(id) ?? patched.layout.weights.get(id)!
    const { storage } = weight.master ?? weight.value
    if (isQuantised(storage.dtype)) return fillQuantised(runtime, storage, index)
    const norm = id.endsWith('Norm')
    const bound = norm ? 0.1 : 1 / Math.sqrt(storage.cols)
    const range = norm ? ([1 - bound, 1 + bound] as const) : ([-bound, bound] as const)
    await runtime.fillUniform(
      storage.arena,
      storage.offset,
      storage.rows * storage.cols,
      dtypeCode(storage.dtype),
      range,
      1,
      index,
    )
  }
  reserveWeights(patched.arena, runtime)
  runtime.reserve('params', patched.layout.elements * 4)
  for (const { offset, bytes } of patched.arena.writes) runtime.write('weights', offset, bytes)
  for (const [index, entry] of patched.model.entries.entries()) await fill(entry.id, index)
  return LoadedModel.initialise(patched, runtime, { seed: 1 })
}

/** Random codes, which is what normal weights give, and maxima of the size that weights of this width have. */
async function fillQuantised(runtime: Runtime, { arena, offset, rows, cols, dtype }: Storage, index: number): Promise<void> {
  const [elements, blocks] = [rows * cols, Math.ceil((rows * cols) / quantBlock)]
  const fillBits = (at: number, bytes: number) =>
    runtime.fillUniform(arena, at, Math.floor(bytes / 4), dtypeCode('i32'), [0, 1], 1, index)
  if (dtype === 'q8') {
    const bytes = quant8Layout(rows, cols, { blockRows: 1, blockCols: cols })
    await fillBits(offset + bytes.numbers, elements)
    return runtime.fillUniform(
      arena,
      offset + bytes.scales,
      rows,
      dtypeCode('f32'),
      [0.7 / Math.sqrt(cols), 1.3 / Math.sqrt(cols)],
      1,
      index,
    )
  }
  const layout = quant4Layout(dtype as 'q4' | 'q4n', elements)
  await fillBits(offset + layout.codes, elements / 2)
  const maximum = 1.1 / Math.sqrt(cols)
  if (dtype === 'q4')
    return runtime.fillUniform(arena, offset + layout.absmax, blocks, dtypeCode('f32'), [maximum / 2, maximum], 1, index)
  await fillBits(offset + layout.absmax, blocks)
  const shift = new Uint32Array(runtime.read(arena, offset + 64, 4))[0]!
  runtime.write(
    arena,
    offset + layout.nested,
    Float32Array.from({ length: 2 * Math.ceil(blocks / 2 ** shift) }, (_, i) => (i % 2 === 0 ? maximum / 10 : maximum)),
  )
}

function byCommand(plan: TrainingPlan, seconds: Float64Array): StepBench['commands'] {
  const sums = new Map<string, CommandTotal>()
  plan.training.plan.commands.forEach((command, index) => {
    const part = index < plan.training.forwardCommands ? 'forward' : 'backward'
    const { tensors } = command
    const detail =
      command.name === 'gemm'
        ? ` ${['Y=XWᵀ', 'dX=dYW', 'dW=dYᵀX'][command.ints[0]!]} ${tensors[0]!.cols}x${tensors[1]!.cols}`
        : command.name === 'loraGrad'
          ? ` ${tensors[4]!.storage.rows}x${tensors[4]!.cols}`
          : ''
    const name = `${part} ${command.name}${detail}`
    const sum = sums.get(name) ?? { name, seconds: 0, count: 0, flops: 0, bytes: 0 }
    sums.set(name, {
      name,
      seconds: sum.seconds + seconds[index]!,
      count: sum.count + 1,
      flops: sum.flops + commandFlops(command),
      bytes: sum.bytes + commandBytes(command),
    })
  })
  return [...sums.values()].sort((a, b) => b.seconds - a.seconds)
}
