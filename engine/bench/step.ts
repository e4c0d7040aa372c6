import os from 'node:os'
import { dtypeCode } from '../graph/dtype.ts'
import type { PrecisionCode } from '../graph/ops/linear.ts'
import { LoadedModel } from '../runtime/loadedModel.ts'
import { patchModel, type PatchedModel, type Training } from '../runtime/patchedModel.ts'
import { Runtime } from '../runtime/runtime.ts'
import { Trainer, type LossBatch } from '../train/trainer.ts'
import { planTraining, type Checkpointing, type TrainingPlan } from '../train/trainingPlan.ts'
import { commandBytes, commandFlops, stepFlops } from './flops.ts'
import { measureGemm } from './gemm.ts'
import { shapeModel } from './shapes.ts'

export interface StepBenchOptions {
  readonly shape: string
  readonly tokens: number
  readonly steps: number
  readonly threads: number
  readonly precision: PrecisionCode
  readonly checkpointing: Checkpointing
  readonly training: Training
  /** Use only so many layers of the shape. */
  readonly layers?: number
  /** Also tell the seconds of each kind of command. */
  readonly profile: boolean
}

export interface StepBench {
  readonly shape: string
  readonly tokens: number
  readonly threads: number
  readonly precision: 'float32' | 'bfloat16'
  readonly losses: readonly number[]
  /** Of the fastest step. */
  readonly seconds: number
  readonly tokensPerSecond: number
  readonly gflops: number
  /** GFLOP/s of a 2048³ product in the same precision, measured just before. */
  readonly gemmPeak: number
  readonly share: number
  readonly plannedBytes: number
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

/** Whole optimizer steps of the trainer on made-up weights and one repeated batch, whose loss has to fall. */
export async function benchStep(options: StepBenchOptions): Promise<StepBench> {
  const peak = await measureGemm({ m: 2048, n: 2048, k: 2048, mode: 0, weight: 'f32', precision: options.precision, threads: options.threads })
  const patched = patchModel(shapeModel(options.shape, 'BF16', options.layers), options.training)
  const plan = planTraining(patched, {
    precision: options.precision, checkpointing: options.checkpointing, longestSample: options.tokens, longestStep: options.tokens, sequences: 1,
    evaluates: false, availableBytes: os.freemem(), threads: options.threads,
  })
  const runtime = new Runtime('cpu', options.threads)
  try {
    const model = await madeUpModel(patched, runtime, options.precision)
    const trainer = new Trainer(model, plan, { seed: 1, maxGradNorm: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.01 })
    const batch = madeUpBatch(options.tokens, patched.model.spec.vocabulary)
    const losses: number[] = []
    let seconds = Infinity
    for (let step = 0; step < options.steps; ++step) {
      const before = performance.now()
      losses.push((await trainer.step(step, [batch], { default: 1e-3, embedding: 1e-3 })).loss)
      seconds = Math.min(seconds, (performance.now() - before) / 1000)
    }
    const gflops = stepFlops(patched, options.tokens) / seconds / 1e9
    return {
      shape: options.shape, tokens: options.tokens, threads: options.threads, precision: options.precision === 0 ? 'float32' : 'bfloat16', losses, seconds,
      tokensPerSecond: options.tokens / seconds, gflops, gemmPeak: peak.gflops, share: gflops / peak.gflops, plannedBytes: plan.totalBytes, plan: plan.summary,
      commands: options.profile ? byCommand(plan, await trainer.profile(batch)) : [],
    }
  } finally {
    runtime.dispose()
  }
}

/** A model with random weights: norms near 1, everything else small. */
export async function madeUpModel(patched: PatchedModel, runtime: Runtime, precision: PrecisionCode): Promise<LoadedModel> {
  const fill = async (id: string, index: number) => {
    const { storage } = (patched.arena.weights.get(id) ?? patched.layout.weights.get(id)!).value
    const norm = id.endsWith('Norm')
    const bound = norm ? 0.1 : 1 / Math.sqrt(storage.cols)
    await runtime.fillUniform(storage.arena, storage.offset, storage.rows * storage.cols, dtypeCode(storage.dtype), norm ? [1 - bound, 1 + bound] : [-bound, bound], 1, index)
  }
  runtime.reserve('weights', patched.arena.bytes)
  runtime.reserve('params', patched.layout.elements * 4)
  for (const [index, entry] of patched.model.entries.entries()) await fill(entry.id, index)
  return LoadedModel.initialise(patched, runtime, { precision, seed: 1 })
}

/** One sequence of made-up tokens, all labelled. */
export function madeUpBatch(tokens: number, vocabulary: number): LossBatch {
  const ids = Int32Array.from({ length: tokens }, (_, i) => ((i + 1) * 7919) % vocabulary)
  const labelled = tokens - 1
  return {
    ids, positions: Int32Array.from(ids.keys()), tokenKeys: Int32Array.from({ length: 2 * tokens }, (_, i) => (i % 2 === 0 ? 0 : i >> 1)),
    qStart: Int32Array.of(0, tokens), kvStart: Int32Array.of(0), kvLength: Int32Array.of(tokens),
    labelIndex: Int32Array.from({ length: labelled }, (_, i) => i), labels: ids.slice(1), weights: new Float32Array(labelled).fill(1 / labelled),
  }
}

function byCommand(plan: TrainingPlan, seconds: Float64Array): StepBench['commands'] {
  const sums = new Map<string, CommandTotal>()
  plan.training.plan.commands.forEach((command, index) => {
    const part = index < plan.training.forwardCommands ? 'forward' : 'backward'
    const detail = command.name === 'gemm' ? ` ${['Y=XWᵀ', 'dX=dYW', 'dW=dYᵀX'][command.ints[0]!]} ${command.tensors[0]!.cols}x${command.tensors[1]!.cols}` : ''
    const name = `${part} ${command.name}${detail}`
    const sum = sums.get(name) ?? { name, seconds: 0, count: 0, flops: 0, bytes: 0 }
    sums.set(name, { name, seconds: sum.seconds + seconds[index]!, count: sum.count + 1, flops: sum.flops + commandFlops(command), bytes: sum.bytes + commandBytes(command) })
  })
  return [...sums.values()].sort((a, b) => b.seconds - a.seconds)
}
