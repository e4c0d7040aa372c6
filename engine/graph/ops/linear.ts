import type { PrecisionCode } from '../target.ts'
import { slice, whole, type Command, type Graph, type GradientBuilder, type Tensor } from '../graph.ts'
import { unpacked } from './unpacked.ts'

/** A parameter or frozen weight; `grad` is where its gradient accumulates, present only when it is trained. */
export interface Weight {
  readonly value: Tensor
  /** The fp32 values that `value` is a rounded copy of, where it is one. */
  readonly master?: Tensor
  readonly grad?: Tensor
}

/** A low-rank update of rows [column, column + width) of a weight: W + scale·B·A (arXiv 2106.09685). */
export interface LoraPart {
  readonly column: number
  readonly width: number
  readonly rank: number
  /** [rank, in] */
  readonly a: Weight
  /** [width, rank] */
  readonly b: Weight
  readonly scale: number
  /** Dropout on this part's input; `site` makes its mask differ from that of any other place. */
  readonly dropout?: { readonly p: number; readonly site: number }
}

/**
 * The updates of one weight; with `stackedA` [Σ rank, in] all parts share one pass over the input, with `stackedB` [Σ width, rank] one
 * over the gradient of the result.
 */
export interface LoraGroup {
  readonly parts: readonly LoraPart[]
  readonly stackedA?: Weight
  readonly stackedB?: Weight
  /** Trained lengths of the rows: see doraLinear. */
  readonly dora?: Dora
}

/** What DoRA (arXiv 2402.09353) knows of a weight's rows, fp32 [1, out] each; made after each update by doraNorms. */
export interface Dora {
  /** ‖W_o‖², which never changes. */
  readonly squares: Tensor
  /** ‖W_o + scale·B_o·A‖ */
  readonly norm: Tensor
  /** magnitude / norm; 1 for rows without an adapter. */
  readonly gain: Tensor
  /** Trained lengths [1, width] of the rows that have an adapter, neighbours together. */
  readonly magnitudes: readonly { readonly column: number; readonly width: number; readonly value: Weight }[]
}

export interface LinearOptions {
  readonly weight: Weight
  readonly bias?: Weight
  readonly lora?: LoraGroup
  /** Added to the result: the residual stream. */
  readonly add?: Tensor
  /** Factor on the product (not on `add`). */
  readonly alpha?: number
  readonly precision: PrecisionCode
  /** Inputs that dropout is keyed by. */
  readonly randomness?: { readonly tokenKeys: Tensor; readonly random: Tensor }
}

const NT = 0
const NN = 1
const TN = 2

interface GemmOptions {
  readonly accumulate?: boolean
  readonly alpha?: number
  readonly bias?: Tensor | undefined
  readonly add?: Tensor | undefined
  readonly terms?: readonly { a: Tensor; b: Tensor; column: number; alpha: number }[]
  readonly precision: PrecisionCode
}

/** The gemm command; see engine/graph/commands.ts. */
export function gemm(mode: 0 | 1 | 2, c: Tensor, a: Tensor, b: Tensor, options: GemmOptions): Command {
  const terms = options.terms ?? []
  return {
    name: 'gemm',
    tensors: [c, a, b, options.bias, options.add, ...terms.flatMap((term) => [term.a, term.b])],
    ints: [mode, options.accumulate === true ? 1 : 0, options.precision, ...terms.map((term) => term.column)],
    floats: [options.alpha ?? 1, ...terms.map((term) => term.alpha)],
  }
}

/** The loraGrad command: dU and dB of parts that stand so in dY. `b` holds all of their rows. */
export function loraGrad(
  du: Tensor,
  dy: Tensor,
  u: Tensor,
  b: Weight,
  parts: readonly Pick<LoraPart, 'column' | 'width'>[],
  alpha: number,
  precision: PrecisionCode,
): Command {
  const ints = [precision, ...parts.flatMap(({ column, width }) => [column, width])]
  return { name: 'loraGrad', tensors: [du, b.grad, dy, u, b.value], ints, floats: [alpha] }
}

interface LoraDown {
  readonly part: LoraPart
  /** alpha·scale·x·Aᵀ of this part. */
  readonly u: Tensor
  /** The input this part saw: x, or x after dropout. */
  readonly seen: Tensor
}

/**
 * Y = alpha·(X·Wᵀ + Σ scale_i·(X·A_iᵀ)·B_iᵀ + bias) + add. [n,in] → [n,out].
 * Backward (arXiv 2106.09685, kernels of small rank first): dU = alpha·scale·dY·B and dB += dYᵀU in one pass (U holds alpha·scale);
 * dA += dUᵀX; dX = alpha·dY·W + dU·A.
 */
export function linear(graph: Graph, name: string, x: Tensor, y: Tensor, options: LinearOptions): Tensor {
  const { weight, bias, lora, add, precision } = options
  const alpha = options.alpha ?? 1
  if (alpha !== 1 && bias !== undefined) throw new Error('linear: a factor together with a bias is not used by any architecture')
  const down = lora === undefined ? [] : loraDown(graph, name, x, y, lora, options)
  const trained = weight.grad !== undefined || bias?.grad !== undefined || lora !== undefined
  const terms = down.map(({ part, u }) => ({ a: u, b: part.b.value, column: part.column, alpha: 1 }))
  const forward = unpacked(graph, weight.value)
  graph.record(
    {
      commands: [...forward.commands, gemm(NT, y, x, forward.operand, { alpha, bias: bias?.value, add, terms, precision })],
      outputs: [y, ...forward.scratch],
      backward: (b) => {
        const dy = b.gradientOf(y)
        if (dy === undefined) return
        const { grad } = weight
        if (grad !== undefined)
          b.whenRestored(x, (value) => b.emit(gemm(TN, grad, dy, value, { alpha, accumulate: true, precision })))
        if (bias?.grad !== undefined) b.emit({ name: 'columnSum', tensors: [bias.grad, dy], ints: [], floats: [1] })
        const gradients = lora === undefined ? undefined : loraBackward(b, x, dy, down, lora, alpha, precision)
        if (graph.needsGradient(x)) {
          const { tensor: dx, accumulate } = b.target(x)
          const { operand, commands } = unpacked(graph, weight.value)
          for (const command of commands) b.emit(command)
          b.emit(gemm(NN, dx, dy, operand, { alpha, accumulate, terms: gradients?.terms ?? [], precision }))
          for (const { part, du } of gradients?.dropped ?? []) {
            const masked = b.scratch(`d ${name}.dropped`, x, x.cols)
            b.emit(gemm(NN, masked, du, part.a.value, { precision }))
            b.emit(dropout(dx, masked, part.dropout!, options, true))
          }
        }
        if (add !== undefined) b.passThrough(add, y)
      },
    },
    trained || graph.needsGradient(x) || (add !== undefined && graph.needsGradient(add)),
  )
  return y
}

/**
 * U = alpha·scale·X·Aᵀ: one product for a stacked group of one scale, else one for each part, on its own dropped-out input. The
 * factor stands here, where the matrix is small, so that the big product adds U·Bᵀ as it is.
 */
function loraDown(graph: Graph, name: string, x: Tensor, y: Tensor, lora: LoraGroup, options: LinearOptions): LoraDown[] {
  const keep = y.storage.keep === 'attention' ? 'attention' : 'mlp'
  const rank = lora.parts.reduce((sum, part) => sum + part.rank, 0)
  const u = graph.activation(`${name}.u`, rank, { rule: x.storage.rule, keep })
  const { precision, alpha = 1 } = options
  const stacked = isStacked(lora)
  if (stacked) {
    const factor = alpha * lora.parts[0]!.scale
    graph.record({ commands: [gemm(NT, u, x, lora.stackedA!.value, { alpha: factor, precision })], outputs: [u] }, true)
  }
  let column = 0
  return lora.parts.map((part, index) => {
    const mine = slice(u, column, part.rank)
    column += part.rank
    if (stacked) return { part, u: mine, seen: x }
    const seen =
      part.dropout === undefined
        ? x
        : graph.activation(`${name}.dropped${index}`, x.cols, { rule: x.storage.rule, keep: 'derived' })
    if (part.dropout !== undefined)
      graph.record({ commands: [dropout(seen, x, part.dropout, options, false)], outputs: [seen] }, false)
    graph.record(
      { commands: [gemm(NT, mine, seen, part.a.value, { alpha: alpha * part.scale, precision })], outputs: [mine] },
      true,
    )
    return { part, u: mine, seen }
  })
}

const ofOneScale = ({ parts }: LoraGroup): boolean => parts.every(({ scale }) => scale === parts[0]!.scale)

/** Whether one product with all As serves the group. */
const isStacked = (lora: LoraGroup): boolean => lora.stackedA !== undefined && ofOneScale(lora)

interface LoraGradients {
  /** Low-rank terms of dX. */
  readonly terms: { readonly a: Tensor; readonly b: Tensor; readonly column: number; readonly alpha: number }[]
  /** Parts whose share of dX goes through their dropout mask first. */
  readonly dropped: { readonly part: LoraPart; readonly du: Tensor }[]
}

/** dU, dB and dA of every part. */
function loraBackward(
  b: GradientBuilder,
  x: Tensor,
  dy: Tensor,
  down: readonly LoraDown[],
  lora: LoraGroup,
  alpha: number,
  precision: PrecisionCode,
): LoraGradients {
  const rank = lora.parts.reduce((sum, part) => sum + part.rank, 0)
  const u = whole(down[0]!.u.storage)
  const du = b.scratch(`d ${u.storage.name}`, x, rank)
  const slices = down.map(({ u: { column, cols } }) => slice(du, column, cols))
  const [first] = lora.parts
  const emit = (duOf: Tensor, uOf: Tensor, matrix: Weight, parts: readonly LoraPart[], scale: number): void =>
    b.emit(loraGrad(duOf, dy, b.value(uOf), matrix, parts, alpha * scale, precision))
  if (lora.stackedB !== undefined && ofOneScale(lora)) emit(du, u, lora.stackedB, lora.parts, first!.scale)
  else down.forEach(({ part, u: mine }, i) => emit(slices[i]!, mine, part.b, [part], part.scale))
  if (lora.stackedA !== undefined && isStacked(lora)) {
    const { grad } = lora.stackedA
    if (grad !== undefined) b.whenRestored(x, (value) => b.emit(gemm(TN, grad, du, value, { accumulate: true, precision })))
    return { terms: [{ a: du, b: lora.stackedA.value, column: 0, alpha: 1 }], dropped: [] }
  }
  const gradients: LoraGradients = { terms: [], dropped: [] }
  down.forEach(({ part, seen }, index) => {
    const mine = slices[index]!
    const { grad } = part.a
    if (grad !== undefined) b.whenRestored(seen, (value) => b.emit(gemm(TN, grad, mine, value, { accumulate: true, precision })))
    if (part.dropout === undefined) gradients.terms.push({ a: mine, b: part.a.value, column: 0, alpha: 1 })
    else gradients.dropped.push({ part, du: mine })
  })
  return gradients
}

/** Command for a part's dropout; the same mask both ways. */
export function dropout(
  y: Tensor,
  x: Tensor,
  { p, site }: { p: number; site: number },
  { randomness }: LinearOptions,
  accumulate: boolean,
): Command {
  if (randomness === undefined) throw new Error('dropout needs its keys')
  return {
    name: 'dropout',
    tensors: [y, x, randomness.tokenKeys, randomness.random],
    ints: [site, accumulate ? 1 : 0],
    floats: [p],
  }
}
