import type { Command, Graph, Keep, Tensor } from '../graph.ts'
import type { PrecisionCode } from '../target.ts'
import type { LoraGroup, Weight } from './linear.ts'
import { unpacked } from './unpacked.ts'

/** Load balance of the routers: what the layers gather, and what comes back to them. */
export interface Balance {
  /** Filled by `route`: one matrix for each routed layer. */
  readonly layers: Tensor[]
  /** ∂loss/∂p of each expert, the same for every row. */
  readonly share: Tensor
  /** Factor of the loss in this micro-step [1,1]. */
  readonly weight: Tensor
}

/** Which expert sees which token. Slots are (token, choice) pairs in the order of `route`; see commands.ts. */
export interface Routing {
  readonly choices: number
  readonly experts: number
  readonly weight: Tensor
  readonly token: Tensor
  readonly place: Tensor
  readonly first: Tensor
}

export interface RouteOptions {
  readonly choices: number
  readonly renormalise: boolean
  readonly balance?: Balance
}

/** Picks the experts of each token. The weights carry gradient back to the logits, also when the router itself is frozen. */
export function route(graph: Graph, logits: Tensor, options: RouteOptions): Routing {
  const { choices, balance } = options
  const experts = logits.cols
  const weight = graph.activation('weight', 1, { repeat: choices, keep: 'mlp', dtype: 'f32' })
  const token = graph.activation('token', 1, { repeat: choices, keep: 'mlp', dtype: 'i32' })
  const place = graph.activation('place', choices, { keep: 'mlp', dtype: 'i32' })
  const first = graph.activation('first', 1, { rule: 'fixed', rows: experts + 1, keep: 'mlp', dtype: 'i32' })
  const gathered =
    balance === undefined ? undefined : graph.activation('balance', 2 * experts, { rule: 'fixed', rows: 1, dtype: 'f64' })
  if (gathered !== undefined) balance!.layers.push(gathered)
  const ints = [options.renormalise ? 1 : 0]
  graph.record(
    {
      commands: [{ name: 'route', tensors: [weight, token, place, first, gathered, logits], ints, floats: [] }],
      outputs: [weight, token, place, first, ...(gathered === undefined ? [] : [gathered])],
      backward: (b) => {
        const dWeight = b.gradientOf(weight)
        if (dWeight === undefined || !graph.needsGradient(logits)) return
        const { tensor, accumulate } = b.target(logits)
        if (accumulate) throw new Error('route is the only consumer of the router logits')
        b.emit({
          name: 'routeGrad',
          tensors: [tensor, dWeight, b.value(logits), b.value(place), b.value(first), balance?.share, balance?.weight],
          ints,
          floats: [],
        })
      },
    },
    graph.needsGradient(logits),
  )
  return { choices, experts, weight, token, place, first }
}

/** A balance over the routers of all layers; give it to each `route`, then to `balanceLoss`. */
export function newBalance(graph: Graph, experts: number, weight: Tensor): Balance {
  return { layers: [], share: graph.activation('balance.share', experts, { rule: 'fixed', rows: 1, dtype: 'f32' }), weight }
}

/** The balance loss of all routers, written to `loss` [1,1]. */
export function balanceLoss(graph: Graph, balance: Balance, choices: number, loss: Tensor): void {
  graph.record(
    {
      commands: [{ name: 'balanceLoss', tensors: [loss, balance.share, ...balance.layers], ints: [choices], floats: [] }],
      outputs: [balance.share],
    },
    false,
  )
}

/** x[token] for every slot: [n·k, cols]. */
export function dispatch(graph: Graph, x: Tensor, routing: Routing): Tensor {
  const y = graph.activation('dispatched', x.cols, { repeat: routing.choices, keep: 'derived' })
  graph.record(
    {
      commands: [{ name: 'gatherRows', tensors: [y, x, routing.token], ints: [], floats: [] }],
      outputs: [y],
      backward: (b) => {
        const dy = b.gradientOf(y)
        if (dy === undefined || !graph.needsGradient(x)) return
        const { tensor, accumulate } = b.target(x)
        b.emit({
          name: 'combineRows',
          tensors: [tensor, dy, b.value(routing.place), undefined],
          ints: [accumulate ? 1 : 0],
          floats: [],
        })
      },
    },
    graph.needsGradient(x),
  )
  return y
}

/** y[token] = Σ of the token's slots + add. */
export function combine(graph: Graph, name: string, x: Tensor, routing: Routing, keep: Keep, add?: Tensor): Tensor {
  const y = graph.activation(name, x.cols, { keep })
  graph.record(
    {
      commands: [{ name: 'combineRows', tensors: [y, x, routing.place, add], ints: [0], floats: [] }],
      outputs: [y],
      backward: (b) => {
        const dy = b.gradientOf(y)
        if (dy === undefined) return
        if (graph.needsGradient(x)) {
          const { tensor, accumulate } = b.target(x)
          if (accumulate) throw new Error('combine is the only consumer of the experts’ results')
          b.emit({ name: 'gatherRows', tensors: [tensor, dy, b.value(routing.token)], ints: [], floats: [] })
        }
        if (add !== undefined) b.passThrough(add, y)
      },
    },
    graph.needsGradient(x) || (add !== undefined && graph.needsGradient(add)),
  )
  return y
}

/** h·weight for every slot. Scaled before the last product, so that its result need not be kept: Σ w·(h·Wᵀ) = Σ (w·h)·Wᵀ. */
export const weigh = (graph: Graph, h: Tensor, { weight }: Routing): Tensor => scaleRows(graph, 'weighed', h, weight)

/** weight[i]·x[i] for every row; weight [rows, 1]. */
export function scaleRows(graph: Graph, name: string, h: Tensor, weight: Tensor): Tensor {
  const y = graph.activation(name, h.cols, { rule: h.storage.rule, repeat: h.storage.repeat ?? 1, keep: 'derived' })
  graph.record(
    {
      commands: [{ name: 'scaleRows', tensors: [y, h, weight], ints: [], floats: [], inPlace: [[0, 1]] }],
      outputs: [y],
      backward: (b) => {
        const dy = b.gradientOf(y)
        if (dy === undefined) return
        const dh = graph.needsGradient(h) ? b.target(h).tensor : b.scratch('d unused', h, h.cols)
        const dw = graph.needsGradient(weight) ? b.target(weight).tensor : undefined
        b.emit({
          name: 'scaleRowsGrad',
          tensors: [dh, dw, dy, b.value(h), b.value(weight)],
          ints: [],
          floats: [],
          inPlace: [[0, 2]],
        })
      },
    },
    graph.needsGradient(h) || graph.needsGradient(weight),
  )
  return y
}

export interface ExpertLinearOptions {
  /** All experts' matrices, one below the other: [E·out, in]. */
  readonly weight: Weight
  /** One part for all experts: a [r·E, in], b [out, r·E] as PEFT stores them. */
  readonly lora?: LoraGroup
  readonly routing: Routing
  readonly alpha?: number
  readonly precision: PrecisionCode
}

interface LowRank {
  readonly a: Tensor
  readonly b: Tensor
  readonly alpha: number
}

const stacked = 0
const byColumns = 1
const lowByColumns = 2

/** Y = alpha·(X·W_eᵀ + scale·(X·A_eᵀ)·B_eᵀ), e the slot's expert. Backward as in `linear`, expert by expert. */
export function expertLinear(graph: Graph, name: string, x: Tensor, width: number, options: ExpertLinearOptions): Tensor {
  const { weight, routing, precision } = options
  const alpha = options.alpha ?? 1
  const { choices: repeat, first } = routing
  const y = graph.activation(name, width, { repeat, keep: 'mlp' })
  const part = options.lora?.parts[0]
  const u = part === undefined ? undefined : graph.activation(`${name}.u`, part.rank, { repeat, keep: 'mlp' })
  const product = (
    mode: 0 | 1 | 2,
    c: Tensor,
    a: Tensor,
    b: Tensor,
    where: Tensor,
    factor: number,
    columns: 0 | 1 | 2 = stacked,
    low?: LowRank,
  ): Command => ({
    name: 'expertGemm',
    tensors: [c, a, b, where, low?.a, low?.b],
    ints: [mode, precision, columns],
    floats: [factor, low?.alpha ?? 1],
  })
  if (part !== undefined) graph.record({ commands: [product(0, u!, x, part.a.value, first, 1)], outputs: [u!] }, true)
  const low = part === undefined ? undefined : { a: u!, b: part.b.value, alpha: alpha * part.scale }
  const forward = unpacked(graph, weight.value)
  graph.record(
    {
      commands: [
        ...forward.commands,
        product(0, y, x, forward.operand, first, alpha, low === undefined ? stacked : lowByColumns, low),
      ],
      outputs: [y, ...forward.scratch],
      backward: (b) => {
        const dy = b.gradientOf(y)
        if (dy === undefined) return
        const where = b.value(first)
        if (weight.grad !== undefined) b.emit(product(2, weight.grad, dy, b.value(x), where, alpha))
        const du = part === undefined ? undefined : b.scratch(`d ${name}.u`, y, part.rank)
        if (part !== undefined) {
          const scale = alpha * part.scale
          b.emit(product(1, du!, dy, part.b.value, where, scale, byColumns))
          if (part.b.grad !== undefined) b.emit(product(2, part.b.grad, dy, b.value(u!), where, scale, byColumns))
          if (part.a.grad !== undefined) b.emit(product(2, part.a.grad, du!, b.value(x), where, 1))
        }
        if (!graph.needsGradient(x)) return
        const { tensor: dx, accumulate } = b.target(x)
        if (accumulate) throw new Error('an expert’s product is the only consumer of its input')
        const { operand, commands } = unpacked(graph, weight.value)
        for (const command of commands) b.emit(command)
        b.emit(
          product(
            1,
            dx,
            dy,
            operand,
            where,
            alpha,
            stacked,
            part === undefined ? undefined : { a: du!, b: part.a.value, alpha: 1 },
          ),
        )
      },
    },
    weight.grad !== undefined || part !== undefined || graph.needsGradient(x),
  )
  return y
}
