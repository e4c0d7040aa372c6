import { commandSignatures } from './commands.ts'
import { whole, type Command, type Storage } from './graph.ts'

/** An activation that lies idle between its last use of the forward pass and its first of the backward pass; numbers of commands. */
interface Idle {
  readonly storage: Storage
  readonly written: number
  readonly lastForward: number
  readonly firstBackward: number
}

export interface OffloadLimits {
  /** Commands that an activation must lie idle for: the last layers' are needed again before a copy would be over. */
  readonly leastCommands: number
  /** Narrower ones are not worth a copy. */
  readonly leastCols: number
}

const length = ({ lastForward, firstBackward }: Idle, forward: number): number => forward - lastForward + firstBackward

/** What can wait elsewhere, longest idle first: whole matrices that follow the tokens. */
function idleActivations(
  forward: readonly Command[],
  backward: readonly Command[],
  { leastCommands, leastCols }: OffloadLimits,
): Idle[] {
  const written = new Map<Storage, number>()
  const lastForward = new Map<Storage, number>()
  const firstBackward = new Map<Storage, number>()
  forward.forEach(({ name, tensors }, at) => {
    tensors.forEach((tensor, operand) => {
      if (tensor === undefined) return
      if (operand < commandSignatures[name].outputs) written.set(tensor.storage, at)
      lastForward.set(tensor.storage, at)
    })
  })
  backward.forEach(({ tensors }, at) => {
    for (const tensor of tensors)
      if (tensor !== undefined && !firstBackward.has(tensor.storage)) firstBackward.set(tensor.storage, at)
  })
  const found: Idle[] = []
  for (const [storage, at] of written) {
    const first = firstBackward.get(storage)
    if (first === undefined || storage.arena !== 'activations' || storage.rule !== 'tokens' || storage.repeat !== undefined)
      continue
    if (storage.cols < leastCols) continue
    const idle = { storage, written: at, lastForward: lastForward.get(storage)!, firstBackward: first }
    if (length(idle, forward.length) >= leastCommands) found.push(idle)
  }
  return found.sort((a, b) => length(b, forward.length) - length(a, forward.length))
}

export interface Offloaded {
  readonly forward: readonly Command[]
  readonly backward: readonly Command[]
  /** Activations that could be offloaded, of which `count` or all were. */
  readonly candidates: number
}

/**
 * Lets `count` activations, those that lie idle longest, wait for the backward pass in memory of the system. Each leaves while its layer
 * computes (until the next layer's is there), and is on its way back while the layer behind is differentiated; both copies run beside the
 * computation. What is computed stays the same to the bit.
 */
export function offloadActivations(
  forward: readonly Command[],
  backward: readonly Command[],
  count: number,
  limits: OffloadLimits,
): Offloaded {
  const idle = idleActivations(forward, backward, limits)
  const chosen = new Set(idle.slice(0, count))
  const command = (name: 'offload' | 'prefetch' | 'awaitCopy', ...storages: Storage[]): Command => ({
    name,
    tensors: storages.map(whole),
    ints: [],
    floats: [],
  })
  const afterForward = new Map<number, Command[]>()
  const beforeBackward = new Map<number, Command[]>()
  const insert = (into: Map<number, Command[]>, at: number, added: Command) => into.set(at, [...(into.get(at) ?? []), added])
  const returned = new Map<Storage, Storage>()
  const inOrder = [...idle].sort((a, b) => a.firstBackward - b.firstBackward)
  inOrder.forEach((each, index) => {
    if (!chosen.has(each)) return
    const { storage } = each
    const behind = inOrder[index - 1]
    const host: Storage = { ...storage, name: `${storage.name} on the host`, arena: 'offloaded' }
    const back: Storage = { ...storage, name: `${storage.name} returned` }
    returned.set(storage, back)
    insert(afterForward, each.written, command('offload', host, storage))
    insert(afterForward, Math.max(each.lastForward, behind?.written ?? 0), command('awaitCopy', storage))
    insert(beforeBackward, behind?.firstBackward ?? 0, command('prefetch', back, host))
    insert(beforeBackward, each.firstBackward, command('awaitCopy', back))
  })
  const redirected = (original: Command): Command => ({
    ...original,
    tensors: original.tensors.map((tensor) =>
      tensor === undefined ? tensor : { ...tensor, storage: returned.get(tensor.storage) ?? tensor.storage },
    ),
  })
  return {
    forward: forward.flatMap((each, at) => [each, ...(afterForward.get(at) ?? [])]),
    backward: backward.flatMap((each, at) => [...(beforeBackward.get(at) ?? []), redirected(each)]),
    candidates: idle.length,
  }
}
