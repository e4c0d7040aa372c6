import { cpus } from 'node:os'
import type { DevicesResult } from '#shared/protocol.ts'
import { native } from '../native.ts'
import { knownOverhead } from '../runtime/gpuOverhead.ts'
import { availableMemory, totalMemory } from '../runtime/memory.ts'

/** The devices that runs here can compute on, the one that `auto` takes first, with the memory that is free at this moment. */
export function devices(): DevicesResult {
  const cpu = { id: 'cpu', label: cpus()[0]?.model.trim() ?? 'CPU', freeBytes: availableMemory(), totalBytes: totalMemory() }
  const { cuda } = native().describe()
  const gpus = (cuda?.gpus ?? []).map(({ index, name, totalBytes }) => {
    const status = native().gpuStatus(index)
    const overhead = knownOverhead(index)
    return {
      id: `cuda:${index}`,
      label: name,
      totalBytes,
      ...(overhead === undefined ? {} : { overhead }),
      ...(status === undefined ? {} : { freeBytes: status.totalBytes - status.usedBytes }),
    }
  })
  const problem = cuda?.problem ?? ''
  return { devices: [...gpus, cpu], ...(gpus.length === 0 && problem !== '' ? { noGpu: problem } : {}) }
}
