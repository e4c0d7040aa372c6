import { UnslothError } from '#shared/errors.ts'
import { cpuTarget, cudaTarget, type Compute, type Target } from '../graph/target.ts'
import { native, type NativeGpu } from '../native.ts'
import { physicalCores } from './cores.ts'
import { availableMemory } from './memory.ts'
import type { DeviceChoice } from './runtime.ts'

/** GPUs that this build computes on, and why there are none. */
export function usableGpus(): { readonly gpus: readonly NativeGpu[]; readonly problem: string } {
  const { cuda } = native().describe()
  return cuda ?? { gpus: [], problem: 'This build of the addon has no CUDA kernels.' }
}

/**
 * The device that a setting names: `cpu`, `cuda` (the first GPU), `cuda:1`, or `auto`: a GPU where there is one. `threads` 0: one for
 * each physical core. `usable`: the GPUs to choose from.
 */
export function chooseDevice(name: string, threads = 0, usable = usableGpus): DeviceChoice {
  const cpu = { kind: 'cpu', threads: threads === 0 ? physicalCores() : threads } as const
  if (name === 'cpu') return cpu
  const wanted = /^cuda(?::(\d+))?$/.exec(name)
  if (wanted === null && name !== 'auto')
    throw new UnslothError('USAGE', `There is no device "${name}".`, { hint: 'Use auto, cpu, cuda or cuda:N.' })
  const { gpus, problem } = usable()
  if (wanted === null) return gpus.length === 0 ? cpu : { kind: 'cuda', index: gpus[0]!.index }
  if (gpus.length === 0) throw new UnslothError('GPU', problem, { hint: 'Use device cpu, or run `unsloth doctor`.' })
  const gpu = wanted[1] === undefined ? gpus[0]! : gpus.find(({ index }) => index === Number(wanted[1]))
  if (gpu === undefined)
    throw new UnslothError('GPU', `There is no GPU number ${wanted[1]}.`, {
      hint: `There are: ${gpus.map(({ index, name }) => `cuda:${index} (${name})`).join(', ')}.`,
    })
  return { kind: 'cuda', index: gpu.index }
}

/** Number formats on a device: `auto` is fp32 on a processor and bfloat16 on a GPU (float16 where it has none). */
export function targetOf(device: DeviceChoice, compute: Compute | 'auto', usable = usableGpus): Target {
  if (device.kind === 'cpu') {
    if (compute === 'float16' || compute === 'tfloat32')
      throw new UnslothError('RECIPE', `training.compute: ${compute} is for GPUs.`, {
        hint: 'Use auto, float32 or bfloat16 on the processor.',
      })
    return cpuTarget(compute === 'auto' ? 'float32' : compute)
  }
  const capability = usable().gpus.find(({ index }) => index === device.index)?.capability ?? 80
  if (compute === 'tfloat32' && capability < 80)
    throw new UnslothError(
      'RECIPE',
      `training.compute: tfloat32 is for GPUs from Ampere (compute capability 8.0) on; ${deviceName(device)} has ${(capability / 10).toFixed(1)}.`,
      { hint: 'Use auto, float16 or float32.' },
    )
  return cudaTarget(compute === 'auto' ? (capability >= 80 ? 'bfloat16' : 'float16') : compute)
}

/** Memory that is free on a device now; on a GPU all of it where the driver's library does not tell. */
export const freeBytes = (device: DeviceChoice): number =>
  device.kind === 'cpu' ? availableMemory() : freeGpuBytes(device.index)

/** Memory of the system that a run may take beside a GPU's. A processor's own is that of the system. */
export const freeHostBytes = (device: DeviceChoice): number => (device.kind === 'cpu' ? Infinity : availableMemory())

function freeGpuBytes(index: number): number {
  const status = native().gpuStatus(index)
  if (status !== undefined) return status.totalBytes - status.usedBytes
  return usableGpus().gpus.find((gpu) => gpu.index === index)?.totalBytes ?? 0
}

/** `cpu`, `cuda:0`: how a device is named in queues, status and messages. */
export const deviceName = (device: DeviceChoice): string => (device.kind === 'cpu' ? 'cpu' : `cuda:${device.index}`)
