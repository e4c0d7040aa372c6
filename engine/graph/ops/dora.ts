import { bytesPerElement, isQuantised, type DType } from '../dtype.ts'
import { rowRange, slice, whole, type Command, type GradientBuilder, type Graph, type Tensor } from '../graph.ts'
import { dropout, gemm, linear, loraGrad, type Dora, type LinearOptions, type LoraGroup, type LoraPart } from './linear.ts'

const [NT, NN, TN] = [0, 1, 2] as const

export interface DoraOptions extends LinearOptions {
  readonly lora: LoraGroup
  /** When the product before its rows are scaled is kept for the backward pass. */
  readonly keep: 'attention' | 'mlp'
}

/**
 * Y = alpha·(gain⊙Z + bias) + add with Z = X·Wᵀ + Σ scale·(X·Aᵀ)·Bᵀ and gain = m/‖W + scale·B·A‖ of each row (DoRA, arXiv
 * 2402.09353). The norm is a constant to the gradient, as in PEFT: dZ = alpha·gain⊙dY; dm += alpha·Σ dY⊙Z / norm.
 *
 * With dropout D, PEFT's formula: Y = X·Wᵀ + bias + (gain − 1)⊙(D(X)·Wᵀ) + gain⊙scale·(D(X)·Aᵀ)·Bᵀ, which is
 * gain⊙Z + (X − D(X))·Wᵀ + bias with Z of D(X).
 */
export function doraLinear(graph: Graph, name: string, x: Tensor, y: Tensor, options: DoraOptions): Tensor {
  const { weight, bias, lora, add, keep, precision } = options
  const dora = lora.dora!
  const alpha = options.alpha ?? 1
  if (weight.grad !== undefined) throw new Error('dora: the weight below an adapter is frozen')
  if (alpha !== 1 && bias !== undefined) throw new Error('dora: a factor together with a bias is not used by any architecture')
  const z = graph.activation(`${name}.z`, y.cols, { rule: x.storage.rule, keep })
  if (lora.parts.some((part) => part.dropout !== undefined)) return withDropout(graph, name, { x, z, y }, options)
  const plain = { parts: lora.parts, ...(lora.stackedA === undefined ? {} : { stackedA: lora.stackedA }) }
  linear(graph, name, x, z, { weight, lora: plain, precision })
  graph.record(
    {
      commands: [
        { name: 'scaleColumns', tensors: [y, z, dora.gain, bias?.value, add], ints: [], floats: [alpha], inPlace: [[0, 1]] },
      ],
      outputs: [y],
      backward: (b) => {
        const dy = b.gradientOf(y)
        if (dy === undefined) return
        if (bias?.grad !== undefined) b.emit({ name: 'columnSum', tensors: [bias.grad, dy], ints: [], floats: [1] })
        const dz = b.target(z).tensor
        const value = b.value(z)
        let column = 0
        const plainColumns = (to: number): void => {
          const of = (tensor: Tensor): Tensor => slice(tensor, column, to - column)
          if (to > column) b.emit({ name: 'add', tensors: [of(dz), of(dy), undefined], ints: [], floats: [alpha, 0] })
        }
        for (const magnitude of dora.magnitudes) {
          plainColumns(magnitude.column)
          b.emit(scaleGrad(slice(dz, magnitude.column, magnitude.width), dy, value, dora, magnitude.column, alpha))
          column = magnitude.column + magnitude.width
        }
        plainColumns(y.cols)
        if (add !== undefined) b.passThrough(add, y)
      },
    },
    true,
  )
  return y
}

/** dZ and dm of the columns from `column` on, as wide as dZ: they lie within one stretch of magnitudes. */
function scaleGrad(dz: Tensor, dy: Tensor, z: Tensor, dora: Dora, column: number, alpha: number): Command {
  const width = dz.cols
  const owner = dora.magnitudes.find((each) => each.column <= column && column + width <= each.column + each.width)!
  const of = (tensor: Tensor): Tensor => slice(tensor, column, width)
  const dm = slice(owner.value.grad!, column - owner.column, width)
  return {
    name: 'scaleColumnsGrad',
    tensors: [dz, dm, of(dy), of(z), of(dora.gain), of(dora.norm)],
    ints: [],
    floats: [alpha],
    inPlace: [[0, 2]],
  }
}

/** Rows of a frozen weight as a product's operand, with what makes it. */
interface Rows {
  readonly operand: Tensor
  readonly commands: readonly Command[]
  readonly scratch: readonly Tensor[]
}

/** Rows [row, row + rows) of a frozen weight; those of a quantised one as plain numbers of `type`. */
export function weightRows(weight: Tensor, row: number, rows: number, type: DType, layer: number): Rows {
  const { storage } = weight
  if (!isQuantised(storage.dtype))
    return {
      operand: rows === storage.rows ? weight : rowRange(weight, row, rows, bytesPerElement(storage.dtype)),
      commands: [],
      scratch: [],
    }
  const operand = whole({
    ...storage,
    name: `${storage.name}[${row}:${row + rows}] unpacked`,
    arena: 'activations',
    offset: -1,
    dtype: type,
    rows,
    keep: 'derived',
    layer,
  })
  return { operand, commands: [{ name: 'dequantise', tensors: [operand, weight], ints: [row], floats: [] }], scratch: [operand] }
}

interface Piece {
  readonly column: number
  readonly width: number
  readonly part?: { readonly part: LoraPart; readonly dropped: Tensor; readonly u: Tensor }
}

interface Values {
  readonly x: Tensor
  readonly z: Tensor
  readonly y: Tensor
}

function withDropout(graph: Graph, name: string, values: Values, options: DoraOptions): Tensor {
  const { x, z, y } = values
  const { weight, bias, lora, add, keep, precision } = options
  const { gain } = lora.dora!
  const alpha = options.alpha ?? 1
  const frozen = graph.unpacked.get(weight.value.storage) ?? weight.value
  const rowsOf = ({ column, width }: Piece): Rows => weightRows(frozen, column, width, graph.unpackedType ?? 'f32', graph.layer)
  const { rule } = x.storage
  const u = graph.activation(
    `${name}.u`,
    lora.parts.reduce((sum, { rank }) => sum + rank, 0),
    { rule, keep },
  )
  const pieces: Piece[] = []
  let [column, rank] = [0, 0]
  lora.parts.forEach((part, index) => {
    if (part.column > column) pieces.push({ column, width: part.column - column })
    const dropped = graph.activation(`${name}.dropped${index}`, x.cols, { rule, keep: 'derived' })
    const mine = slice(u, rank, part.rank)
    graph.record({ commands: [dropout(dropped, x, part.dropout!, options, false)], outputs: [dropped] }, false)
    graph.record({ commands: [gemm(NT, mine, dropped, part.a.value, { alpha: part.scale, precision })], outputs: [mine] }, true)
    pieces.push({ column: part.column, width: part.width, part: { part, dropped, u: mine } })
    column = part.column + part.width
    rank += part.rank
  })
  if (column < y.cols) pieces.push({ column, width: y.cols - column })
  const forward: Command[] = []
  const scratch: Tensor[] = []
  for (const piece of pieces) {
    const of = (tensor: Tensor): Tensor => slice(tensor, piece.column, piece.width)
    const rows = rowsOf(piece)
    const share = (tensor: Tensor | undefined): Tensor | undefined => (tensor === undefined ? undefined : of(tensor))
    const base = { alpha, bias: share(bias?.value), add: share(add), precision }
    if (piece.part === undefined) {
      forward.push(...rows.commands, gemm(NT, of(y), x, rows.operand, base))
      scratch.push(...rows.scratch)
      continue
    }
    const { part, dropped, u: mine } = piece.part
    const terms = [{ a: mine, b: part.b.value, column: 0, alpha: 1 }]
    const product = gemm(NT, of(z), dropped, rows.operand, { terms, precision })
    graph.record({ commands: [...rows.commands, product], outputs: [of(z), ...rows.scratch] }, true)
    const rest = graph.activation(`${name}.rest`, x.cols, { rule, keep: 'derived' })
    const again = rowsOf(piece)
    forward.push(
      { name: 'add', tensors: [rest, x, dropped], ints: [], floats: [1, -1] },
      ...again.commands,
      gemm(NT, of(y), rest, again.operand, base),
      { name: 'scaleColumns', tensors: [of(y), of(z), of(gain), undefined, of(y)], ints: [], floats: [alpha] },
    )
    scratch.push(rest, ...again.scratch)
  }
  const backward = (b: GradientBuilder): void => droppedBackward(b, graph, name, values, pieces, rowsOf, options)
  graph.record({ commands: forward, outputs: [y, ...scratch], backward }, true)
  return y
}

/** dX = alpha·dY·W + D((dZ − alpha·dY)·W + dU·A), for each stretch of rows with its own mask D. */
function droppedBackward(
  b: GradientBuilder,
  graph: Graph,
  name: string,
  { x, z, y }: Values,
  pieces: readonly Piece[],
  rowsOf: (piece: Piece) => Rows,
  options: DoraOptions,
): void {
  const { bias, lora, add, precision } = options
  const alpha = options.alpha ?? 1
  const dy = b.gradientOf(y)
  if (dy === undefined) return
  if (bias?.grad !== undefined) b.emit({ name: 'columnSum', tensors: [bias.grad, dy], ints: [], floats: [1] })
  const inputs = graph.needsGradient(x)
  for (const piece of pieces) {
    const mine = slice(dy, piece.column, piece.width)
    const rows = inputs ? rowsOf(piece) : undefined
    for (const command of rows?.commands ?? []) b.emit(command)
    if (rows !== undefined) {
      const { tensor, accumulate } = b.target(x)
      b.emit(gemm(NN, tensor, mine, rows.operand, { alpha, accumulate, precision }))
    }
    if (piece.part === undefined) continue
    const { part, dropped, u } = piece.part
    const dz = b.scratch(`d ${name}.z`, x, piece.width)
    b.emit({ ...scaleGrad(dz, dy, b.value(z), lora.dora!, piece.column, alpha), inPlace: [] })
    const du = b.scratch(`d ${name}.u`, x, part.rank)
    b.emit(loraGrad(du, dz, b.value(u), part.b, [{ column: 0, width: piece.width }], part.scale, precision))
    if (part.a.grad !== undefined) b.emit(gemm(TN, part.a.grad, du, b.value(dropped), { accumulate: true, precision }))
    if (rows === undefined) continue
    b.emit({ name: 'add', tensors: [dz, dz, mine], ints: [], floats: [1, -alpha] })
    const masked = b.scratch(`d ${name}.dropped`, x, x.cols)
    b.emit(gemm(NN, masked, dz, rows.operand, { terms: [{ a: du, b: part.a.value, column: 0, alpha: 1 }], precision }))
    b.emit(dropout(b.target(x).tensor, masked, part.dropout!, options, true))
  }
  if (add !== undefined) b.passThrough(add, y)
}
