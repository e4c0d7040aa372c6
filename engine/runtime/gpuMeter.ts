import { native } from '../native.ts'

/**
 * Memory of this process on a GPU: as the driver's library counts it, or, where that does not know this process (as in a container), by how
 * much the memory in use grew since this was made.
 */
export class GpuMeter {
  private readonly index: number
  private readonly before: number

  constructor(index: number) {
    this.index = index
    const status = native().gpuStatus(index)
    this.before = status === undefined ? 0 : status.usedBytes - (status.processBytes ?? 0)
  }

  /** Undefined where the library does not tell. */
  get bytes(): number | undefined {
    const status = native().gpuStatus(this.index)
    return status === undefined ? undefined : (status.processBytes ?? Math.max(0, status.usedBytes - this.before))
  }
}
