import { commandNames } from './commands.ts'
import { dtypeCode, bytesPerElement } from './dtype.ts'
import { arenas, isPlanned, rowRules, type Arena, type Tensor, type Tile } from './graph.ts'
import type { Plan } from './plan.ts'

/** What the addon's `createPlan` takes; buffer numbers are positions in `arenas`, to be replaced by handles of a device. */
export interface EncodedPlan {
  readonly tensors: Float64Array
  readonly commands: Int32Array
  readonly floats: Float64Array
  readonly arenas: readonly Arena[]
}

/** Of `EncodedPlan.tensors`. */
export const numbersPerTensor = 8

/** Flattens a plan into the numbers that kernels/core/plan.h decodes. */
export function encodePlan(plan: Plan): EncodedPlan {
  const used = arenas.filter((arena) =>
    plan.commands.some((command) => command.tensors.some((tensor) => tensor?.storage.arena === arena)),
  )
  const table = new Map<string, number>()
  const tensors: number[] = []
  const indexOf = (tensor: Tensor | undefined, tile: Tile | undefined): number => {
    if (tensor === undefined) return -1
    const { storage, column, cols } = tensor
    const part = storage.rule === 'fixed' ? undefined : tile
    const skipped = part === undefined || storage.tiled === true ? 0 : part.first
    const base = isPlanned(storage) ? plan.offsets.get(storage)! : storage.offset
    const numbers = [
      dtypeCode(storage.dtype),
      used.indexOf(storage.arena),
      base + (skipped * storage.cols + column) * bytesPerElement(storage.dtype),
      part === undefined ? storage.rows : Math.min(part.rows, storage.rows - skipped),
      cols,
      storage.cols,
      rowRules.indexOf(storage.rule) + rowRules.length * ((storage.repeat ?? 1) - 1),
      part === undefined ? 0 : part.first + 1,
    ]
    const key = numbers.join()
    const known = table.get(key)
    if (known !== undefined) return known
    const index = table.size
    table.set(key, index)
    tensors.push(...numbers)
    return index
  }
  const commands: number[] = []
  const floats: number[] = []
  for (const command of plan.commands) {
    commands.push(commandNames.indexOf(command.name), command.tensors.length, command.ints.length, command.floats.length)
    commands.push(...command.tensors.map((tensor) => indexOf(tensor, command.tile)), ...command.ints)
    floats.push(...command.floats)
  }
  return {
    tensors: Float64Array.from(tensors),
    commands: Int32Array.from(commands),
    floats: Float64Array.from(floats),
    arenas: used,
  }
}
