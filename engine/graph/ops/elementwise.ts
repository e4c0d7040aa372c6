import { slice, type Graph, type Keep, type Tensor } from '../graph.ts'
import type { Weight } from './linear.ts'

export const gluKinds = { silu: 0, gelu_tanh: 1, gelu_erf: 2 } as const
/** Kinds of `activate`: those and more. */
export const activationKinds = { ...gluKinds, relu: 4, sigmoid: 5 } as const
export type ActivationKind = keyof typeof activationKinds
export type GluKind = keyof typeof gluKinds

/** h = act(gate)⊙up from one [n, 2f] buffer (gate first); see glu in commands.ts. */
export function glu(graph: Graph, gateUp: Tensor, kind: GluKind): Tensor {
  const f = gateUp.cols / 2
  const [gate, up] = [slice(gateUp, 0, f), slice(gateUp, f, f)]
  const h = graph.activation('h', f, { rule: gateUp.storage.rule, repeat: gateUp.storage.repeat ?? 1, keep: 'derived' })
  const ints = [gluKinds[kind]]
  graph.record(
    {
      commands: [{ name: 'glu', tensors: [h, gate, up], ints, floats: [] }],
      outputs: [h],
      restores: true,
      backward: (b) => {
        const dh = b.gradientOf(h)
        if (dh === undefined) return
        const dGate = b.target(gate).tensor
        const dUp = b.target(up).tensor
        const tensors = [dGate, dUp, b.restored(h), dh, b.value(gate), b.value(up)]
        b.emit({
          name: 'gluGrad',
          tensors,
          ints,
          floats: [],
          inPlace: [
            [0, 4],
            [2, 3],
          ],
        })
      },
    },
    graph.needsGradient(gateUp),
  )
  return h
}

/** h = act(x); see activation in commands.ts. */
export function activate(graph: Graph, x: Tensor, kind: ActivationKind, name = 'h'): Tensor {
  const h = graph.activation(name, x.cols, { rule: x.storage.rule, keep: 'derived' })
  const ints = [activationKinds[kind]]
  graph.record(
    {
      commands: [{ name: 'activation', tensors: [h, x], ints, floats: [] }],
      outputs: [h],
      backward: (b) => {
        const dh = b.gradientOf(h)
        if (dh === undefined) return
        const { tensor, accumulate } = b.target(x)
        if (accumulate) throw new Error('an activation is the only consumer of its input')
        b.emit({ name: 'activationGrad', tensors: [tensor, dh, b.value(x)], ints, floats: [], inPlace: [[0, 1]] })
      },
    },
    graph.needsGradient(x),
  )
  return h
}

/** x = scale·table[ids]; the table's gradient accumulates when it is trained. */
export function embed(graph: Graph, ids: Tensor, table: Weight, scale: number, name = 'embedding'): Tensor {
  const x = graph.activation(name, table.value.cols)
  graph.record(
    {
      commands: [{ name: 'embed', tensors: [x, ids, table.value], ints: [], floats: [scale] }],
      outputs: [x],
      backward: (b) => {
        const dx = b.gradientOf(x)
        if (dx !== undefined && table.grad !== undefined)
          b.emit({ name: 'embedGrad', tensors: [table.grad, ids, dx], ints: [], floats: [scale] })
      },
    },
    table.grad !== undefined,
  )
  return x
}

/** y = a + beta·b. */
export function addRows(graph: Graph, name: string, a: Tensor, b: Tensor, beta: number, keep: Keep): Tensor {
  const y = graph.activation(name, a.cols, { keep })
  graph.record(
    {
      commands: [{ name: 'add', tensors: [y, a, b], ints: [], floats: [1, beta] }],
      outputs: [y],
      backward: (builder) => {
        const dy = builder.gradientOf(y)
        if (dy === undefined) return
        if (graph.needsGradient(b)) {
          const { tensor, accumulate } = builder.target(b)
          builder.emit({
            name: 'add',
            tensors: accumulate ? [tensor, tensor, dy] : [tensor, dy, undefined],
            ints: [],
            floats: accumulate ? [1, beta] : [beta, 0],
          })
        }
        builder.passThrough(a, y)
      },
    },
    graph.needsGradient(a) || graph.needsGradient(b),
  )
  return y
}

/** The rows that carry a label, [m, h]. */
export function gatherRows(graph: Graph, x: Tensor, index: Tensor): Tensor {
  const y = graph.activation('labelled', x.cols, { rule: 'labelled' })
  graph.record(
    {
      commands: [{ name: 'gatherRows', tensors: [y, x, index], ints: [], floats: [] }],
      outputs: [y],
      backward: (b) => {
        const dy = b.gradientOf(y)
        if (dy === undefined || !graph.needsGradient(x)) return
        const { tensor, accumulate } = b.target(x)
        b.emit({ name: 'scatterRows', tensors: [tensor, dy, index], ints: [accumulate ? 1 : 0], floats: [] })
      },
    },
    graph.needsGradient(x),
  )
  return y
}

/** A place of its own among those that dropout masks are keyed by: sites of adapters count from 0. */
const noiseSite = 2 ** 30

/** x + alpha·scale·u on each row (arXiv 2310.05914); the gradient passes through. */
export function noise(
  graph: Graph,
  x: Tensor,
  { scale, alpha }: { scale: Tensor; alpha: number },
  { tokenKeys, random }: { tokenKeys: Tensor; random: Tensor },
): Tensor {
  const y = graph.activation('noisy', x.cols, { keep: 'residual' })
  graph.record(
    {
      commands: [
        { name: 'noise', tensors: [y, x, scale, tokenKeys, random], ints: [noiseSite], floats: [alpha], inPlace: [[0, 1]] },
      ],
      outputs: [y],
      backward: (b) => b.passThrough(x, y),
    },
    graph.needsGradient(x),
  )
  return y
}
