import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { engineEntry } from '../projectRoot.ts'
import { deviceName, freeBytes, freeHostBytes, targetOf } from '../runtime/chooseDevice.ts'
import { GpuMeter } from '../runtime/gpuMeter.ts'
import { gpuOverhead } from '../runtime/gpuOverhead.ts'
import { patchModel, type Training } from '../runtime/patchedModel.ts'
import { nf4 } from '../runtime/quantisedWeights.ts'
import { Runtime, type DeviceChoice } from '../runtime/runtime.ts'
import type { HostWeight } from '../runtime/weightArena.ts'
import { optimizerKinds } from '../train/optimizerState.ts'
import { planTraining, type Checkpointing } from '../train/trainingPlan.ts'
import { madeUpSample, packSteps } from './batches.ts'
import { shapeModel } from './shapes.ts'
import { madeUpTrainer } from './step.ts'

/** A training run on made-up weights whose memory is planned and measured. */
export interface MemoryCase {
  readonly name: string
  readonly shape: string
  /** Of the shape, to make it shorter. */
  readonly layers?: number
  readonly method: 'lora' | 'qlora' | 'full'
  readonly rank?: number
  readonly tokens: number
  readonly sequences: number
  /** As recipes name it. */
  readonly optim: string
  readonly checkpointing: Checkpointing
  readonly hostWeights?: readonly HostWeight[]
}

export interface MemoryFigures {
  readonly name: string
  readonly plannedBytes: number
  /** Of the process on its GPU; on a processor the peak above what it had before it read weights. */
  readonly measuredBytes: number
  /** (measured − planned) / planned */
  readonly difference: number
  readonly hostBytes: number
  readonly plan: string
}
export type MemoryResult = MemoryFigures | { readonly name: string; readonly error: string }

const named = (given: Omit<MemoryCase, 'name'>): MemoryCase => {
  const { shape, layers, method, rank, tokens, sequences, optim, checkpointing, hostWeights = [] } = given
  const model = `${shape}${layers === undefined ? '' : `/${layers}`}`
  return {
    ...given,
    name: [
      model,
      `${method}${rank === undefined ? '' : `-r${rank}`}`,
      `${sequences}x${tokens}`,
      optim,
      checkpointing,
      ...hostWeights.map((id) => `host-${id}`),
    ].join(' '),
  }
}

type Row = readonly [
  shape: string,
  method: MemoryCase['method'],
  rank: number,
  sequences: number,
  tokens: number,
  optim: string,
  checkpointing: Checkpointing,
  more?: Partial<MemoryCase>,
]
const table = (rows: readonly Row[]): MemoryCase[] =>
  rows.map(([shape, method, rank, sequences, tokens, optim, checkpointing, more]) =>
    named({ shape, method, ...(method === 'full' ? {} : { rank }), sequences, tokens, optim, checkpointing, ...more }),
  )

/** Twenty runs over sizes, ranks, methods, lengths, optimizers and recomputation: real shapes for a GPU, short ones for a processor. */
export const memoryCases: Readonly<Record<DeviceChoice['kind'], readonly MemoryCase[]>> = {
  cuda: table([
    ['qwen2.5-0.5b', 'lora', 16, 4, 1024, 'adamw_torch', 'none'],
    ['qwen2.5-0.5b', 'full', 0, 4, 1024, 'adamw_torch', 'none'],
    ['qwen2.5-0.5b', 'full', 0, 4, 1024, 'adamw_8bit', 'full'],
    ['qwen2.5-0.5b', 'qlora', 64, 8, 2048, 'adamw_torch', 'none'],
    ['llama-3.2-1b', 'lora', 16, 4, 2048, 'adamw_torch', 'none'],
    ['llama-3.2-1b', 'lora', 128, 2, 4096, 'adamw_8bit', 'full'],
    ['llama-3.2-1b', 'full', 0, 2, 2048, 'adamw_8bit', 'none'],
    ['llama-3.2-1b', 'full', 0, 1, 2048, 'sgd', 'none'],
    ['llama-3.2-1b', 'full', 0, 1, 2048, 'adafactor', 'full'],
    ['llama-3.2-1b', 'qlora', 16, 1, 16_384, 'adamw_torch', 'full'],
    ['llama-3.2-3b', 'lora', 16, 2, 2048, 'adamw_torch', 'none'],
    ['llama-3.2-3b', 'qlora', 32, 4, 2048, 'lion_8bit', 'auto'],
    ['llama-3.2-3b', 'full', 0, 1, 1024, 'adamw_8bit', 'full'],
    ['llama-3.2-3b', 'full', 0, 1, 2048, 'lion_8bit', 'full'],
    ['llama-3.1-8b', 'lora', 16, 1, 2048, 'adamw_torch', 'none'],
    ['llama-3.1-8b', 'qlora', 16, 1, 2048, 'adamw_8bit', 'full'],
    ['llama-3.1-8b', 'qlora', 16, 4, 2048, 'adamw_8bit', 'full'],
    ['llama-3.1-8b', 'qlora', 16, 4, 2048, 'adamw_8bit', 'none'],
    ['llama-3.1-8b', 'qlora', 32, 1, 32_768, 'adamw_8bit', 'offload'],
    ['llama-3.1-8b', 'lora', 16, 2, 2048, 'adamw_torch', 'full', { hostWeights: ['embedding'] }],
  ]),
  cpu: table([
    ['stories15m', 'full', 0, 2, 256, 'adamw_torch', 'none'],
    ['stories15m', 'full', 0, 2, 256, 'sgd', 'full'],
    ['stories15m', 'lora', 64, 4, 256, 'adamw_torch', 'none'],
    ['qwen2.5-0.5b', 'lora', 8, 1, 32, 'adamw_torch', 'none', { layers: 1 }],
    ['qwen2.5-0.5b', 'lora', 64, 1, 32, 'adamw_8bit', 'none', { layers: 2 }],
    ['qwen2.5-0.5b', 'lora', 16, 2, 128, 'adamw_torch', 'full', { layers: 4 }],
    ['qwen2.5-0.5b', 'qlora', 16, 1, 32, 'adamw_8bit', 'none', { layers: 4 }],
    ['qwen2.5-0.5b', 'qlora', 64, 2, 64, 'lion_8bit', 'full', { layers: 4 }],
    ['qwen2.5-0.5b', 'lora', 16, 1, 512, 'adamw_torch', 'none', { layers: 2 }],
    ['qwen2.5-0.5b', 'lora', 16, 1, 512, 'adamw_torch', 'full', { layers: 2 }],
    ['qwen2.5-0.5b', 'full', 0, 1, 32, 'adamw_torch', 'none', { layers: 1 }],
    ['qwen2.5-0.5b', 'full', 0, 1, 32, 'adamw_8bit', 'none', { layers: 1 }],
    ['qwen2.5-0.5b', 'full', 0, 1, 32, 'adafactor', 'full', { layers: 2 }],
    ['qwen2.5-0.5b', 'full', 0, 1, 32, 'lion_8bit', 'none', { layers: 2 }],
    ['llama-3.2-1b', 'lora', 16, 1, 32, 'adamw_torch', 'none', { layers: 1 }],
    ['llama-3.2-1b', 'lora', 128, 1, 32, 'adamw_8bit', 'full', { layers: 2 }],
    ['llama-3.2-1b', 'qlora', 16, 1, 32, 'adamw_torch', 'none', { layers: 2 }],
    ['llama-3.2-1b', 'qlora', 16, 1, 128, 'sgd', 'full', { layers: 4 }],
    ['llama-3.2-1b', 'lora', 16, 2, 64, 'lion_32bit', 'none', { layers: 2 }],
    ['llama-3.2-1b', 'lora', 16, 1, 64, 'paged_adamw_32bit', 'auto', { layers: 2 }],
  ]),
}

/** Steps: a GPU records its graphs in the second. */
const steps = 3

/** Plans one run, takes a few of its steps in this process, and measures. To be called once in a process. */
export async function measureMemory(one: MemoryCase, device: DeviceChoice): Promise<MemoryFigures> {
  const { name, shape, layers, method, rank = 16, tokens, sequences, checkpointing } = one
  const training: Training =
    method === 'full'
      ? { kind: 'full' }
      : { kind: 'lora', r: rank, alpha: rank, dropout: 0, targets: 'all-linear', rslora: false, modulesToSave: [] }
  const patched = patchModel(shapeModel(shape, 'BF16', layers), training, targetOf(device, 'auto'), {
    ...(method === 'qlora' ? { quantisation: nf4 } : {}),
    hostWeights: one.hostWeights ?? [],
  })
  const optimizer = optimizerKinds[one.optim]!
  const plan = planTraining(patched, {
    checkpointing,
    optimizer,
    paged: one.optim.startsWith('paged_'),
    longestSample: tokens,
    longestStep: tokens * sequences,
    sequences,
    evaluates: false,
    availableBytes: freeBytes(device),
    availableHostBytes: freeHostBytes(device),
    threads: device.kind === 'cpu' ? device.threads : 1,
    gpuOverhead: await gpuOverhead(device),
  })
  const { vocabulary } = patched.model.spec
  const batches = packSteps(
    Array.from({ length: steps }, () => Array.from({ length: sequences }, (_, key) => madeUpSample(key, tokens, vocabulary))),
    plan.training.capacity.tokens,
  )
  const meter = device.kind === 'cuda' ? new GpuMeter(device.index) : undefined
  const runtime = new Runtime(device)
  try {
    const before = process.memoryUsage.rss()
    const trainer = await madeUpTrainer(patched, plan, runtime, optimizer)
    for (const [index, batch] of batches.entries()) await trainer.step(index, batch, { default: 1e-4, embedding: 1e-4 })
    const measuredBytes = meter === undefined ? process.resourceUsage().maxRSS * 1024 - before : (meter.bytes ?? NaN)
    const { totalBytes, hostBytes, summary } = plan
    return { name, plannedBytes: totalBytes, measuredBytes, difference: measuredBytes / totalBytes - 1, hostBytes, plan: summary }
  } finally {
    runtime.dispose()
  }
}

/** Measures runs one after another, each in a process of its own; tells each as it is done. */
export async function measureMemoryTable(
  cases: readonly MemoryCase[],
  device: DeviceChoice,
  tell: (result: MemoryResult) => void,
): Promise<MemoryResult[]> {
  await gpuOverhead(device)
  const results: MemoryResult[] = []
  for (const one of cases) {
    const args = [
      engineEntry(),
      'memory-case',
      JSON.stringify(one),
      '--device',
      deviceName(device),
      ...(device.kind === 'cpu' ? ['--threads', String(device.threads)] : []),
    ]
    const result = await promisify(execFile)(process.execPath, args).then(
      ({ stdout }) => JSON.parse(stdout) as MemoryFigures,
      (error: unknown) => ({ name: one.name, error: lastLine(error) }),
    )
    results.push(result)
    tell(result)
  }
  return results
}

/** What a process that failed said last. */
function lastLine(error: unknown): string {
  const lines = ((error as { stderr?: string }).stderr ?? '').trim().split('\n')
  return lines.find((line) => line.startsWith('error:'))?.slice(7) ?? (lines.at(-1) === '' ? String(error) : lines.at(-1)!)
}
