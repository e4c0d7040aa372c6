import type { Compute } from '../graph/target.ts'
import { chooseDevice } from '../runtime/chooseDevice.ts'
import type { DeviceChoice } from '../runtime/runtime.ts'

/** The flags of every command that computes. */
export interface ComputeFlags {
  readonly device: string
  readonly compute: string
  readonly threads: number
}

/** Where and in which number formats a command computes; the flags' choices are checked by the command table. */
export const computeSettings = ({
  device,
  compute,
  threads,
}: ComputeFlags): { device: DeviceChoice; compute: Compute | 'auto' } => ({
  device: chooseDevice(device, threads),
  compute: compute as Compute | 'auto',
})
