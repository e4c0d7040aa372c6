import { commandSignatures } from './commands.ts'
import { bytesPerElement } from './dtype.ts'
import { isPlanned, type Arena, type Command, type Storage, type Tensor } from './graph.ts'
import { expandTiles, type TileLoop, type TiledCommands } from './rowTiles.ts'

/** Offsets are multiples of this many bytes: a cache line pair, and what vector loads and tensor cores like. */
export const alignment = 256
export const align = (bytes: number): number => Math.ceil(bytes / alignment) * alignment

export const storageBytes = (storage: Storage): number => storage.rows * storage.cols * bytesPerElement(storage.dtype)

/** Commands with every activation placed: complete before a byte is allocated. */
export interface Plan {
  readonly commands: readonly Command[]
  /** Where each command that was given begins among `commands`, and their count. */
  readonly starts: readonly number[]
  /** Byte offset of each activation in its arena. */
  readonly offsets: ReadonlyMap<Storage, number>
  /** Size of the activation arena. */
  readonly activationBytes: number
  /** Size of the arena of what waits in memory of the system. */
  readonly offloadedBytes: number
  /** The largest sum of activations alive at one command: what no placement can beat. */
  readonly lowerBound: number
}

interface Life {
  readonly storages: Storage[]
  readonly bytes: number
  first: number
  last: number
}

/** Whether a device may do both at once: what the second writes must not lie where the first still reads. */
const mayJoin = (first: Command | undefined, { name, tensors }: Command): boolean =>
  first?.name === 'gemm' && name === 'glu' && first.tensors[0]?.storage === tensors[1]?.storage

/**
 * The commands that each activation lives for, joined where an output takes over its input's memory. What a loop over tiles finds or
 * leaves lives through all of it: each of its tiles starts from the first command again.
 */
function lifetimes({ commands, loops }: TiledCommands): Life[] {
  const lives = new Map<Storage, Life>()
  commands.forEach((command, at) => {
    for (const operand of command.tensors) {
      if (operand === undefined || !isPlanned(operand.storage)) continue
      const life = lives.get(operand.storage)
      if (life === undefined)
        lives.set(operand.storage, {
          storages: [operand.storage],
          bytes: align(storageBytes(operand.storage)),
          first: at,
          last: at,
        })
      else life.last = at
    }
  })
  for (const loop of loops) extend(lives, commands, loop)
  commands.forEach((command, at) => {
    for (const [output, input] of command.inPlace ?? []) {
      const from = command.tensors[input]
      const to = command.tensors[output]
      if (from === undefined || to === undefined) continue
      const source = lives.get(from.storage)
      const target = lives.get(to.storage)
      if (source === undefined || target === undefined || source === target) continue
      if (source.last !== at || target.first !== at || source.bytes !== target.bytes) continue
      source.last = target.last
      source.storages.push(...target.storages)
      for (const storage of target.storages) lives.set(storage, source)
    }
  })
  commands.forEach((command, at) => {
    if (!mayJoin(commands[at - 1], command)) return
    const live = (tensor: Tensor | undefined): Life | undefined => (tensor === undefined ? undefined : lives.get(tensor.storage))
    for (const life of commands[at - 1]!.tensors.map(live)) if (life !== undefined) life.last = Math.max(life.last, at)
    for (const life of command.tensors.map(live)) if (life !== undefined) life.first = Math.min(life.first, at - 1)
  })
  return [...new Set(lives.values())]
}

function extend(lives: ReadonlyMap<Storage, Life>, commands: readonly Command[], { first, last }: TileLoop): void {
  for (const { tensors } of commands.slice(first, last))
    for (const tensor of tensors) {
      if (tensor === undefined || tensor.storage.tiled === true) continue
      const life = lives.get(tensor.storage)
      if (life === undefined) continue
      life.first = Math.min(life.first, first)
      life.last = Math.max(life.last, last - 1)
    }
}

/**
 * Places every activation by liveness over the command list: largest first, each at the lowest offset of its arena that is free during
 * its whole life. Deterministic.
 */
export function planMemory(commands: readonly Command[], loops: readonly TileLoop[] = []): Plan {
  const lives = lifetimes({ commands, loops })
  const of = (arena: Arena) => lives.filter(({ storages }) => storages[0]!.arena === arena)
  const offsets = new Map<Storage, number>()
  const [activationBytes, offloadedBytes] = [place(of('activations'), offsets), place(of('offloaded'), offsets)]
  return {
    ...expandTiles({ commands, loops }),
    offsets,
    activationBytes,
    offloadedBytes,
    lowerBound: peak(of('activations'), commands.length),
  }
}

/** Adds the offsets of these lives, which share one arena; returns its size. */
function place(lives: readonly Life[], offsets: Map<Storage, number>): number {
  const order = lives
    .map((life, index) => ({ life, index }))
    .sort((a, b) => b.life.bytes - a.life.bytes || a.life.first - b.life.first || a.index - b.index)
  const placed: { life: Life; offset: number }[] = []
  let size = 0
  for (const { life } of order) {
    // `placed` is kept sorted by offset.
    let offset = 0
    for (const other of placed) {
      if (other.life.last < life.first || life.last < other.life.first) continue
      if (other.offset >= offset + life.bytes) break
      offset = Math.max(offset, other.offset + other.life.bytes)
    }
    let at = placed.findIndex((other) => other.offset > offset)
    if (at < 0) at = placed.length
    placed.splice(at, 0, { life, offset })
    for (const storage of life.storages) offsets.set(storage, offset)
    size = Math.max(size, offset + life.bytes)
  }
  return size
}

function peak(lives: readonly Life[], commands: number): number {
  const change = new Float64Array(commands + 1)
  for (const { first, last, bytes } of lives) {
    change[first]! += bytes
    change[last + 1]! -= bytes
  }
  let now = 0
  let most = 0
  for (const step of change) {
    now += step
    most = Math.max(most, now)
  }
  return most
}

/** A plan as text, one command a line: `rmsNorm layers.0.n1[512x64] … @offset`. For reading, and for snapshot tests. */
export function printPlan(plan: Plan): string {
  const show = (tensor: Tensor | undefined): string => {
    if (tensor === undefined) return '-'
    const { storage, column, cols } = tensor
    const rows =
      storage.rule === 'fixed'
        ? String(storage.rows)
        : `${storage.repeat === undefined ? '' : `${storage.repeat}·`}${storage.rule}`
    const part = cols === storage.cols ? '' : `:${column}`
    const place =
      storage.arena === 'activations'
        ? `@${plan.offsets.get(storage)}`
        : `@${storage.arena}${isPlanned(storage) ? plan.offsets.get(storage) : ''}`
    return `${storage.name}[${rows}x${cols}${part}]${place}`
  }
  const lines = plan.commands.map((command) => {
    const { outputs } = commandSignatures[command.name]
    const left = command.tensors.slice(0, outputs).map(show).join(' ')
    const right = command.tensors.slice(outputs).map(show).join(' ')
    const numbers = [...command.ints, ...command.floats.map((value) => Number(value.toPrecision(6)))].join(' ')
    const tile = command.tile === undefined ? '' : ` rows ${command.tile.first}+${command.tile.rows}`
    return `${command.name} ${left} <- ${right}${numbers === '' ? '' : ` (${numbers})`}${tile}`
  })
  return [...lines, `activations ${plan.activationBytes} bytes, lower bound ${plan.lowerBound}`].join('\n')
}
