import type { Command, GradientBuilder, Graph, Node, Storage, Tensor } from './graph.ts'

/** Decides which forward values stay in memory until the backward pass. */
export type SavePolicy = (storage: Storage) => boolean

/**
 * How much of a layer is replayed in the backward pass, from nothing to everything: `mlp` its MLP half, `projections` all but attention
 * itself, which costs most where rows are long.
 */
export const recomputeLevels = ['none', 'mlp', 'projections', 'layer'] as const
export type Recompute = (typeof recomputeLevels)[number]

/** `layers[i]` says what layer i replays; values that cost no matrix product are always replayed. */
export function savePolicy(layers: (layer: number) => Recompute): SavePolicy {
  return ({ keep, layer }) => {
    if (keep === 'residual') return true
    if (keep === 'derived') return false
    if (layer < 0) return true
    const keptUpTo: Readonly<Record<typeof keep, Recompute>> = { mlp: 'none', attention: 'mlp', attended: 'projections' }
    return recomputeLevels.indexOf(layers(layer)) <= recomputeLevels.indexOf(keptUpTo[keep])
  }
}

interface Gradient {
  storage: Storage
  /** Disjoint column ranges of the value's storage that already hold a contribution. */
  readonly written: { from: number; to: number }[]
}

/**
 * Reverse-mode differentiation at build time: walks the recorded nodes backwards, lets each emit its commands, and replays
 * forward nodes where a value was not kept. The result is a flat command list; nothing of this exists at run time.
 */
export class Backward implements GradientBuilder {
  readonly commands: Command[] = []
  private readonly gradients = new Map<Storage, Gradient>()
  private readonly replayed = new Map<Storage, Storage>()

  private readonly replayedNodes = new Set<Node>()
  /** Uses of the output of a node that has yet to restore it. */
  private readonly waiting = new Map<Node, { readonly tensor: Tensor; readonly use: (value: Tensor) => void }[]>()
  private readonly graph: Graph
  private readonly saved: SavePolicy

  constructor(graph: Graph, saved: SavePolicy) {
    this.graph = graph
    this.saved = saved
  }

  /** Every node whose gradient was asked for by a later one emits its commands; a loss starts the chain by itself. */
  run(): Command[] {
    for (const node of [...this.graph.nodes].reverse()) {
      node.backward?.(this)
      for (const { tensor, use } of this.waiting.get(node) ?? []) use(this.value(tensor))
      this.waiting.delete(node)
    }
    return this.commands
  }

  emit(command: Command): void {
    this.commands.push(command)
  }

  value(tensor: Tensor): Tensor {
    const { storage } = tensor
    if (storage.arena !== 'activations' || this.saved(storage)) return tensor
    return { ...tensor, storage: this.replay(storage) }
  }

  whenRestored(tensor: Tensor, use: (value: Tensor) => void): void {
    const { storage } = tensor
    const maker = storage.arena === 'activations' && !this.saved(storage) ? this.graph.producers.get(storage)?.at(-1) : undefined
    if (maker?.restores !== true || this.replayed.has(storage)) return use(this.value(tensor))
    const uses = this.waiting.get(maker)
    if (uses === undefined) this.waiting.set(maker, [{ tensor, use }])
    else uses.push({ tensor, use })
  }

  restored(output: Tensor): Tensor | undefined {
    const { storage } = output
    const maker = this.graph.producers.get(storage)?.at(-1)
    if (maker === undefined || !this.waiting.has(maker) || this.replayed.has(storage)) return undefined
    this.replayedNodes.add(maker)
    return { ...output, storage: this.clone(storage) }
  }

  private replay(storage: Storage): Storage {
    const known = this.replayed.get(storage)
    if (known !== undefined) return known
    const clone = this.clone(storage)
    for (const node of this.graph.producers.get(storage) ?? []) this.replayNode(node)
    return clone
  }

  private clone(storage: Storage): Storage {
    const known = this.replayed.get(storage)
    if (known !== undefined) return known
    const clone: Storage = { ...storage, name: `${storage.name}'` }
    this.replayed.set(storage, clone)
    return clone
  }

  private replayNode(node: Node): void {
    if (this.replayedNodes.has(node)) return
    this.replayedNodes.add(node)
    const written = new Set(node.outputs.map(({ storage }) => storage))
    const commands = node.commands.map((command) => ({
      ...command,
      tensors: command.tensors.map((operand) => {
        if (operand?.storage.arena !== 'activations') return operand
        if (written.has(operand.storage)) return { ...operand, storage: this.clone(operand.storage) }
        return this.value(operand)
      }),
    }))
    for (const command of commands) this.emit(command)
    // Other storages this node wrote are whole only once all of their producers ran.
    for (const storage of written)
      if (!this.saved(storage)) for (const other of this.graph.producers.get(storage) ?? []) this.replayNode(other)
  }

  gradientOf(tensor: Tensor): Tensor | undefined {
    const gradient = this.gradients.get(tensor.storage)
    if (gradient === undefined) return undefined
    const { from, to } = { from: tensor.column, to: tensor.column + tensor.cols }
    const covered = gradient.written.reduce(
      (sum, range) => sum + Math.max(0, Math.min(range.to, to) - Math.max(range.from, from)),
      0,
    )
    if (covered === 0) return undefined
    if (covered !== tensor.cols)
      throw new Error(`the gradient of ${tensor.storage.name} covers ${covered} of ${tensor.cols} columns`)
    return { ...tensor, storage: gradient.storage }
  }

  target(tensor: Tensor): { tensor: Tensor; accumulate: boolean } {
    let gradient = this.gradients.get(tensor.storage)
    if (gradient === undefined) {
      gradient = { storage: { ...tensor.storage, name: `d ${tensor.storage.name}`, keep: 'residual' }, written: [] }
      this.gradients.set(tensor.storage, gradient)
    }
    const from = tensor.column
    const to = tensor.column + tensor.cols
    const overlapping = gradient.written.filter((range) => range.from < to && from < range.to)
    if (overlapping.length === 0) gradient.written.push({ from, to })
    else if (overlapping.reduce((sum, range) => sum + Math.min(range.to, to) - Math.max(range.from, from), 0) !== tensor.cols)
      throw new Error(`the gradient of ${tensor.storage.name} has contributions of different width`)
    return { tensor: { ...tensor, storage: gradient.storage }, accumulate: overlapping.length > 0 }
  }

  passThrough(input: Tensor, output: Tensor): void {
    if (!this.graph.needsGradient(input)) return
    const from = this.gradientOf(output)
    if (from === undefined) return
    if (this.gradients.has(input.storage)) {
      const { tensor } = this.target(input)
      this.emit({ name: 'add', tensors: [tensor, tensor, from], ints: [], floats: [1, 1] })
      return
    }
    this.gradients.set(input.storage, { storage: from.storage, written: [{ from: input.column, to: input.column + input.cols }] })
  }

  scratch(name: string, like: Tensor, cols: number): Tensor {
    return { storage: { ...like.storage, name, arena: 'activations', offset: -1, cols, keep: 'residual' }, column: 0, cols }
  }
}
