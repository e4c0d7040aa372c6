import { UnslothError } from '#shared/errors.ts'
import { GpuMeter } from '../runtime/gpuMeter.ts'
import { patchModel, type PatchOptions, type Training } from '../runtime/patchedModel.ts'
import { targetOf } from '../runtime/chooseDevice.ts'
import type { GpuOverhead } from '../runtime/gpuOverhead.ts'
import { nf4 } from '../runtime/quantisedWeights.ts'
import { Runtime, type DeviceChoice } from '../runtime/runtime.ts'
import type { OptimizerKind } from '../train/optimizerState.ts'
import { planTraining } from '../train/trainingPlan.ts'
import { madeUpBatch } from './batches.ts'
import { shapeModel } from './shapes.ts'
import { madeUpTrainer } from './step.ts'

const shape = 'llama-3.2-1b'
const lora: Training = { kind: 'lora', r: 16, alpha: 16, dropout: 0, targets: 'all-linear', rslora: false, modulesToSave: [] }
/** Row counts of which graphs are recorded: enough commands that the driver's blocks of 2 MB do not blur the mean. */
const sizes = Array.from({ length: 16 }, (_, index) => 128 * (index + 1))

/**
 * What a process takes on a GPU beside what it asks for, measured by training a made-up model there: first two layers in 16 bits, then all
 * in 4 bits, so that the usual kernels are loaded, then the same with many row counts, each of which records a graph.
 */
export async function measureOverhead(device: DeviceChoice & { readonly kind: 'cuda' }): Promise<GpuOverhead> {
  const meter = new GpuMeter(device.index)
  await train(device, { layers: 2, optimizer: 'adamw', patch: {}, steps: [512, 512, 512] })
  const [one, all] = [[512, 512, 512], sizes.flatMap((tokens) => [tokens, tokens])]
  const points: { readonly beside: number; readonly commands: number }[] = []
  await train(device, {
    optimizer: 'adamw8',
    patch: { quantisation: nf4 },
    steps: [...one, ...all],
    after: (runtime, step) => {
      if (step !== one.length && step !== one.length + all.length) return
      const bytes = meter.bytes
      if (bytes === undefined) throw new UnslothError('GPU', 'The driver does not tell how much memory is in use.')
      const { deviceBytes, graphCommands } = runtime.reserved()
      points.push({ beside: Math.max(0, bytes - deviceBytes), commands: graphCommands })
    },
  })
  const [few, many] = points as [(typeof points)[0], (typeof points)[0]]
  const graphNodeBytes = Math.ceil(Math.max(0, many.beside - few.beside) / Math.max(1, many.commands - few.commands))
  return { contextBytes: Math.max(0, few.beside - few.commands * graphNodeBytes), graphNodeBytes }
}

interface Trial {
  readonly layers?: number
  readonly optimizer: OptimizerKind
  readonly patch: PatchOptions
  /** Tokens of each step. */
  readonly steps: readonly number[]
  /** Called when so many steps are done. */
  readonly after?: (runtime: Runtime, steps: number) => void
}

async function train(device: DeviceChoice, { layers, optimizer, patch, steps, after }: Trial): Promise<void> {
  const patched = patchModel(shapeModel(shape, 'BF16', layers), lora, targetOf(device, 'auto'), patch)
  const longest = Math.max(...steps)
  const plan = planTraining(patched, {
    checkpointing: 'none',
    optimizer,
    longestSample: longest,
    longestStep: longest,
    sequences: 1,
    evaluates: false,
    availableBytes: Infinity,
    threads: 1,
  })
  const runtime = new Runtime(device)
  try {
    const trainer = await madeUpTrainer(patched, plan, runtime, optimizer)
    for (const [index, tokens] of steps.entries()) {
      await trainer.step(index, [madeUpBatch(tokens, patched.model.spec.vocabulary)], { default: 1e-4 })
      after?.(runtime, index + 1)
    }
  } finally {
    runtime.dispose()
  }
}
