import { UnslothError } from '#shared/errors.ts'
import { formatBytes } from '#shared/units.ts'
import type { Arena } from '../graph/graph.ts'
import { fromNative, native, type NativeGpuStatus, type Place } from '../native.ts'
import { readText } from './controlGroups.ts'
import { availableMemory } from './memory.ts'
import type { DeviceChoice } from './runtime.ts'

/** What arenas are for, as plans name it. */
export const arenaNames: Readonly<Record<Arena, string>> = {
  weights: 'frozen weights',
  unpacked: 'unpacked weights',
  dora: 'row lengths',
  hostWeights: 'frozen weights on the host',
  params: 'trained weights',
  shadow: 'rounded copies',
  grads: 'gradients',
  moment1: 'the optimizer',
  moment2: 'the optimizer',
  scalars: 'scalars',
  io: 'the batch',
  cache: 'keys and values',
  activations: 'activations',
  offloaded: 'offloaded activations',
}

export interface Refused {
  readonly bytes: number
  readonly place: Place
  readonly what: string
}

/** Memory that a plan counted on and that is gone: how much is free now, who else computes there, and what to do. Other errors stay. */
export function refusedMemory(error: unknown, device: DeviceChoice, refused: Refused): UnslothError {
  const failure = fromNative(error, `Reserving ${refused.bytes} bytes for ${refused.what} failed`)
  if (failure.code !== 'MEMORY') return failure
  const details = (hint: string) => ({ hint, cause: error })
  if (device.kind === 'cuda' && refused.place === 'host')
    return new UnslothError(
      'MEMORY',
      `${failure.message} They are for ${refused.what}.`,
      details(
        'Or set training.offload_embedding and training.offload_lm_head to false, training.gradient_checkpointing: full, or an optimizer that is not paged.',
      ),
    )
  const status = device.kind === 'cuda' ? native().gpuStatus(device.index) : undefined
  const where = device.kind === 'cuda' ? `GPU ${device.index}` : 'The system'
  const free = device.kind === 'cpu' ? availableMemory() : status === undefined ? undefined : status.totalBytes - status.usedBytes
  const now = free === undefined ? '' : `; ${formatBytes(free)} are free now${holders(status)}`
  return new UnslothError(
    'MEMORY',
    `${where} has no ${formatBytes(refused.bytes)} of memory left for ${refused.what}${now}. The run was planned before something else took it, or a limit stands in its way.`,
    details(
      `End what holds it or wait, ${device.kind === 'cuda' ? 'choose another GPU (training.device: cuda:N), ' : 'raise the limit (ulimit -v, or the memory of the container), '}or set training.max_memory to what this run may have.`,
    ),
  )
}

/** "; process 4711 (python) holds 20.1 GB": the largest three. */
export function holders(status: Pick<NativeGpuStatus, 'others'> | undefined): string {
  const largest = [...(status?.others ?? [])].sort((a, b) => b.bytes - a.bytes).slice(0, 3)
  return largest
    .map(({ pid, bytes }) => {
      const name = readText(`/proc/${pid}/comm`)?.trim()
      return `; process ${pid}${name === undefined || name === '' ? '' : ` (${name})`} holds ${formatBytes(bytes)}`
    })
    .join('')
}
