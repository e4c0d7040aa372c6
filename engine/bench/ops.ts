import type { Compute } from '../graph/target.ts'
import type { DeviceChoice } from '../runtime/runtime.ts'
import { benchStep } from './step.ts'

export interface OpMeasurement {
  readonly shape: string
  readonly name: string
  readonly count: number
  /** Of one command. */
  readonly seconds: number
  readonly gflops: number
  /** Operand bytes, each counted once. */
  readonly gigabytesPerSecond: number
}

export interface OpBenchOptions {
  readonly tokens: number
  readonly device: DeviceChoice
  readonly compute: Compute | 'auto'
  /** Only commands whose name contains one of these; all when empty. */
  readonly names: readonly string[]
}

/** Each kind of command of one training step of a model shape with two layers, measured inside the step as it runs. */
export async function measureOps(shape: string, options: OpBenchOptions): Promise<OpMeasurement[]> {
  const bench = await benchStep({
    ...options,
    shape,
    steps: 2,
    sequences: 1,
    instruction: false,
    layers: 2,
    checkpointing: 'none',
    profile: true,
    training: { kind: 'lora', r: 16, alpha: 16, dropout: 0, targets: 'all-linear', rslora: false, modulesToSave: [] },
  })
  return bench.commands
    .filter(({ name }) => options.names.length === 0 || options.names.some((wanted) => name.includes(wanted)))
    .map(({ name, seconds, count, flops, bytes }) => ({
      shape,
      name,
      count,
      seconds: seconds / count,
      gflops: flops / seconds / 1e9,
      gigabytesPerSecond: bytes / seconds / 1e9,
    }))
}
