import type { CommandName } from './commands.ts'
import type { Command, Storage, Tensor } from './graph.ts'

/** Commands [first, last) of a list, which are done for one tile of rows after the other. */
export interface TileLoop {
  readonly first: number
  readonly last: number
  /** Of one tile. */
  readonly rows: number
  readonly tiles: number
}

/** A list of commands with loops over some stretches of it; `expandTiles` makes it flat. */
export interface TiledCommands {
  readonly commands: readonly Command[]
  readonly loops: readonly TileLoop[]
}

/** Commands whose outputs depend on the same row of their inputs alone, or add up over rows what they find there (gradients). */
const byRow: ReadonlySet<CommandName> = new Set<CommandName>([
  'gemm',
  'loraGrad',
  'rmsNorm',
  'rmsNormGrad',
  'layerNorm',
  'layerNormGrad',
  'rope',
  'glu',
  'gluGrad',
  'activation',
  'activationGrad',
  'add',
  'columnSum',
  'dropout',
  'noise',
  'cast',
  'scaleColumns',
  'scaleColumnsGrad',
])

/** Commands on fixed matrices that a stretch may hold: they run once, before its first tile needs them. */
const once: ReadonlySet<CommandName> = new Set<CommandName>(['dequantise'])

const followsTokens = ({ storage }: Tensor): boolean => storage.rule === 'tokens' && storage.repeat === undefined

/** A product that sums over rows must add to what is there: its first tile may not be its only one. */
const overwritesSum = ({ name, ints }: Command): boolean => name === 'gemm' && ints[0] === 2 && ints[1] !== 1

type Class = 'rows' | 'once' | undefined

function classOf(command: Command): Class {
  const operands = command.tensors.filter((tensor) => tensor !== undefined)
  if (once.has(command.name)) return operands.every(({ storage }) => storage.rule === 'fixed') ? 'once' : undefined
  if (!byRow.has(command.name) || overwritesSum(command) || !operands.some(followsTokens)) return undefined
  return operands.every((tensor) => followsTokens(tensor) || tensor.storage.rule === 'fixed') ? 'rows' : undefined
}

/** Maximal stretches of at least two commands by row. None reads a sum over rows that it makes itself. */
function stretches(commands: readonly Command[], from: number, to: number): { first: number; last: number }[] {
  const found: { first: number; last: number }[] = []
  let first = from
  let sums = new Set<Storage>()
  const end = (at: number, next: number): void => {
    if (at - first > 1) found.push({ first, last: at })
    first = next
    sums = new Set()
  }
  for (let at = from; at < to; ++at) {
    const command = commands[at]!
    const kind = classOf(command)
    if (kind === undefined) {
      end(at, at + 1)
      continue
    }
    const fixed = command.tensors.filter((tensor) => tensor?.storage.rule === 'fixed').map((tensor) => tensor!.storage)
    const [output] = command.tensors
    const added = kind === 'rows' ? fixed.filter((storage) => storage.arena === 'grads') : []
    if (fixed.some((storage) => sums.has(storage) && storage !== output?.storage)) end(at, at)
    for (const storage of added) sums.add(storage)
  }
  end(to, to)
  return found
}

/**
 * Turns stretches of commands by row into loops over tiles of `rows` rows, where that saves memory: what lives within one alone shrinks
 * to a tile. That is how a long row's MLP, whose activations are several times as wide as the residual stream, runs in little memory.
 * Sums over rows are split, which changes their rounding only. `parts` are lists that no stretch crosses; `tokens` is the plan's capacity.
 */
export function tileRows(parts: readonly (readonly Command[])[], tokens: number, rows: number): TiledCommands {
  const commands = parts.flat()
  if (tokens <= rows) return { commands, loops: [] }
  const [firstUse, lastUse] = [new Map<Storage, number>(), new Map<Storage, number>()]
  commands.forEach(({ tensors }, at) => {
    for (const tensor of tensors) {
      if (tensor === undefined) continue
      if (!firstUse.has(tensor.storage)) firstUse.set(tensor.storage, at)
      lastUse.set(tensor.storage, at)
    }
  })
  const loops: TileLoop[] = []
  let begin = 0
  for (const part of parts) {
    for (const { first, last } of stretches(commands, begin, begin + part.length)) {
      const local = (tensor: Tensor): boolean =>
        tensor.storage.arena === 'activations' &&
        followsTokens(tensor) &&
        firstUse.get(tensor.storage)! >= first &&
        lastUse.get(tensor.storage)! < last
      const tiles = new Map<Storage, Storage>()
      for (let at = first; at < last; ++at) {
        const command = commands[at]!
        for (const tensor of command.tensors)
          if (tensor !== undefined && local(tensor))
            tiles.set(tensor.storage, tiles.get(tensor.storage) ?? { ...tensor.storage, rows, tiled: true })
        commands[at] = {
          ...command,
          tensors: command.tensors.map((tensor) =>
            tensor === undefined ? tensor : { ...tensor, storage: tiles.get(tensor.storage) ?? tensor.storage },
          ),
        }
      }
      if (tiles.size > 0) loops.push({ first, last, rows, tiles: Math.ceil(tokens / rows) })
    }
    begin += part.length
  }
  return { commands, loops }
}

/** The flat list, and where each command of the tiled one begins in it (one more entry: its length). */
export function expandTiles({ commands, loops }: TiledCommands): {
  readonly commands: readonly Command[]
  readonly starts: readonly number[]
} {
  const flat: Command[] = []
  const starts: number[] = []
  let at = 0
  for (const { first, last, rows, tiles } of [...loops, { first: commands.length, last: commands.length, rows: 0, tiles: 0 }]) {
    for (; at < first; ++at) {
      starts.push(flat.length)
      flat.push(commands[at]!)
    }
    for (let tile = 0; tile < tiles; ++tile)
      for (at = first; at < last; ++at) {
        const command = commands[at]!
        if (tile === 0) starts.push(flat.length)
        if (classOf(command) === 'rows') flat.push({ ...command, tile: { first: tile * rows, rows } })
        else if (tile === 0) flat.push(command)
      }
  }
  return { commands: flat, starts: [...starts, flat.length] }
}
