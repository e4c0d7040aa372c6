import { UnslothError } from '#shared/errors.ts'
import { measureOverhead } from '../../bench/measureOverhead.ts'
import { chooseDevice } from '../../runtime/chooseDevice.ts'
import type { CommandArgs } from '../commandArgs.ts'

/** Prints a GpuOverhead as JSON. */
export async function gpuOverheadCommand({ flags }: CommandArgs<'gpu-overhead'>): Promise<number> {
  const device = chooseDevice(flags.device)
  if (device.kind === 'cpu') throw new UnslothError('GPU', 'There is no GPU to measure.')
  console.log(JSON.stringify(await measureOverhead(device)))
  return 0
}
