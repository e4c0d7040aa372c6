import { measureMemory, type MemoryCase } from '../../bench/memory.ts'
import { chooseDevice } from '../../runtime/chooseDevice.ts'
import type { CommandArgs } from '../commandArgs.ts'

/** Prints the MemoryFigures of one case as JSON. */
export async function memoryCaseCommand({ positionals, flags }: CommandArgs<'memory-case'>): Promise<number> {
  console.log(
    JSON.stringify(await measureMemory(JSON.parse(positionals[0]!) as MemoryCase, chooseDevice(flags.device, flags.threads))),
  )
  return 0
}
