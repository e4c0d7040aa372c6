import type { CommandName } from './commands.ts'
import type { DType } from './dtype.ts'

/** Which live row count a matrix follows in a run; 'fixed' matrices always have all their rows. */
export type RowRule = 'fixed' | 'tokens' | 'labelled' | 'sequences'
export const rowRules: readonly RowRule[] = ['fixed', 'tokens', 'labelled', 'sequences']

/**
 * Memory areas, each laid out by its owner: `activations`, and `offloaded` in memory of the system, by the planner. `hostWeights` too lies
 * in memory of the system.
 */
export const arenas = [
  'weights',
  'hostWeights',
  'unpacked',
  'params',
  'shadow',
  'grads',
  'moment1',
  'moment2',
  'scalars',
  'dora',
  'io',
  'cache',
  'activations',
  'offloaded',
] as const
export type Arena = (typeof arenas)[number]

/** Whether the planner decides where a storage lies. */
export const isPlanned = ({ arena }: Storage): boolean => arena === 'activations' || arena === 'offloaded'

/**
 * When the forward value of an activation is kept for the backward pass:
 * `residual` always (it is what recomputation starts from), `attended` unless the layer is recomputed whole, `attention` unless its
 * projections are, `mlp` unless its MLP half is, `derived` never (a norm, a gate product or a dropout mask: replaying it costs no matrix product).
 */
export type Keep = 'residual' | 'attended' | 'attention' | 'mlp' | 'derived'

/** A block of memory: `rows` (at most) × `cols` elements. Offsets in bytes; -1 until the planner places it. */
export interface Storage {
  readonly name: string
  readonly arena: Arena
  readonly offset: number
  readonly dtype: DType
  readonly rows: number
  readonly cols: number
  readonly rule: RowRule
  /** Rows for each live one: a token that goes to several experts has several rows. 1 when absent. */
  readonly repeat?: number
  readonly keep: Keep
  /** Layer that the value belongs to, -1 outside of layers. */
  readonly layer: number
  /** Holds the rows of one tile at a time; see `Command.tile`. */
  readonly tiled?: true
}

/** A range of columns of a storage: what a command reads or writes. A description, never memory. */
export interface Tensor {
  readonly storage: Storage
  readonly column: number
  readonly cols: number
}

export interface Command {
  readonly name: CommandName
  readonly tensors: readonly (Tensor | undefined)[]
  readonly ints: readonly number[]
  readonly floats: readonly number[]
  /** Operand pairs [output, input] that may share memory when the input is dead afterwards. */
  readonly inPlace?: readonly (readonly [number, number])[]
  /** Only rows [first, first + rows) of the operands that follow the tokens; left out of a run that has fewer. See rowTiles.ts. */
  readonly tile?: Tile
}

export interface Tile {
  readonly first: number
  readonly rows: number
}

/** What a rule of differentiation may do; implemented by `Backward`. */
export interface GradientBuilder {
  /** The forward value, replayed when it was not kept. */
  value(tensor: Tensor): Tensor
  /**
   * Calls `use` with the forward value: at once where it was kept, else when the rule of the node that made it has brought it back,
   * which comes later than the caller's own rule.
   */
  whenRestored(tensor: Tensor, use: (value: Tensor) => void): void
  /** Where the rule of a node that `restores` its output is to write it; undefined when nobody waits for it. */
  restored(output: Tensor): Tensor | undefined
  /** The finished gradient of an output, or undefined when nothing downstream depends on it. */
  gradientOf(tensor: Tensor): Tensor | undefined
  /** Where to add a contribution to an input's gradient: `accumulate` tells whether something is there already. */
  target(tensor: Tensor): { readonly tensor: Tensor; readonly accumulate: boolean }
  /** The input's gradient is the output's: shares memory when it is the first contribution, else adds. */
  passThrough(input: Tensor, output: Tensor): void
  /** Scratch for intermediate gradients. */
  scratch(name: string, like: Tensor, cols: number): Tensor
  emit(command: Command): void
}

/** A recorded operation: its forward commands, and the hand-written rule that emits its backward commands. */
export interface Node {
  readonly commands: readonly Command[]
  readonly outputs: readonly Tensor[]
  readonly layer: number
  /** Its rule brings back the value of its only output as it goes, if asked for `restored`. */
  readonly restores?: true
  /** Absent when no gradient can flow through. */
  readonly backward?: (b: GradientBuilder) => void
}

export interface Capacity {
  readonly tokens: number
  readonly labelled: number
  readonly sequences: number
}

/**
 * The forward computation of one micro-step, recorded once when a plan is built. Activations may be written by several nodes
 * (slices of one buffer, in-place rotation); their value is what stands there after the last of them.
 */
export class Graph {
  readonly nodes: Node[] = []
  readonly producers = new Map<Storage, Node[]>()
  private readonly differentiable = new Set<Storage>()
  layer = -1

  /** The largest row counts that the plan must take. */
  readonly capacity: Capacity
  /** Type of activations that do not say otherwise. */
  readonly activationType: DType

  /** Type that quantised matrices are turned into for products; undefined where products take them as they are. */
  readonly unpackedType: DType | undefined
  /** Quantised matrices that stand in memory as plain numbers, too. */
  readonly unpacked: ReadonlyMap<Storage, Tensor>

  constructor(
    capacity: Capacity,
    activationType: DType = 'f32',
    unpackedType?: DType,
    unpacked: ReadonlyMap<Storage, Tensor> = new Map(),
  ) {
    this.capacity = capacity
    this.activationType = activationType
    this.unpackedType = unpackedType
    this.unpacked = unpacked
  }

  rowsOf(rule: RowRule, fixed = 1): number {
    return rule === 'fixed' ? fixed : this.capacity[rule]
  }

  /** A new activation. */
  activation(
    name: string,
    cols: number,
    options: { rule?: RowRule; keep?: Keep; rows?: number; repeat?: number; dtype?: DType } = {},
  ): Tensor {
    const rule = options.rule ?? 'tokens'
    const repeat = options.repeat ?? 1
    const layered = this.layer < 0 ? name : `layers.${this.layer}.${name}`
    return whole({
      name: layered,
      arena: 'activations',
      offset: -1,
      dtype: options.dtype ?? this.activationType,
      rows: repeat * this.rowsOf(rule, options.rows),
      cols,
      rule,
      ...(repeat === 1 ? {} : { repeat }),
      keep: options.keep ?? 'residual',
      layer: this.layer,
    })
  }

  record(node: Omit<Node, 'layer'>, needsGradient: boolean): void {
    const recorded: Node = { ...node, layer: this.layer }
    this.nodes.push(recorded)
    for (const { storage } of node.outputs) {
      const list = this.producers.get(storage)
      if (list === undefined) this.producers.set(storage, [recorded])
      else if (list.at(-1) !== recorded) list.push(recorded)
      if (needsGradient) this.differentiable.add(storage)
    }
  }

  /** Whether a loss can depend on trainable parameters through this activation. */
  needsGradient(tensor: Tensor): boolean {
    return this.differentiable.has(tensor.storage)
  }

  forwardCommands(): Command[] {
    return this.nodes.flatMap((node) => node.commands)
  }
}

export const whole = (storage: Storage): Tensor => ({ storage, column: 0, cols: storage.cols })

/** Columns [from, from + cols) of a tensor. */
export function slice(tensor: Tensor, from: number, cols: number): Tensor {
  if (from < 0 || from + cols > tensor.cols)
    throw new RangeError(`columns ${from}+${cols} of ${tensor.storage.name} (${tensor.cols} columns)`)
  return { storage: tensor.storage, column: tensor.column + from, cols }
}

/** Rows [from, from + rows) of a matrix in a fixed arena, as its own tensor. */
export function rowRange(tensor: Tensor, from: number, rows: number, bytesPerElement: number): Tensor {
  const { storage } = tensor
  if (storage.rule !== 'fixed' || storage.arena === 'activations') throw new RangeError(`${storage.name} has no fixed rows`)
  if (from < 0 || from + rows > storage.rows)
    throw new RangeError(`rows ${from}+${rows} of ${storage.name} (${storage.rows} rows)`)
  return {
    ...tensor,
    storage: {
      ...storage,
      name: `${storage.name}[${from}:${from + rows}]`,
      offset: storage.offset + from * storage.cols * bytesPerElement,
      rows,
    },
  }
}
