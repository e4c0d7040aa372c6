import type { ArchSpec, MoeSpec } from './archSpec.ts'
import type { StoredForm } from './storedForm.ts'

/** One tensor of the checkpoint inside a weight: rows [row, row + rows) of it. */
export interface WeightPiece {
  /** Full tensor name in the checkpoint, `.weight` or `.bias` included. */
  readonly name: string
  /** The checkpoint tensor that it starts from when that is another one (a copy of a tied embedding, a name without its prefix). */
  readonly from?: string
  readonly row: number
  readonly rows: number
  /** Shape in the file where that is not [rows] of a vector or [rows, cols] of a matrix. */
  readonly shape?: readonly number[]
  /** Present when the file orders the elements otherwise. */
  readonly form?: StoredForm
}

export type WeightKind = 'embedding' | 'head' | 'linear' | 'bias' | 'norm' | 'router' | 'experts'

/**
 * A matrix as the graph uses it: one or more checkpoint tensors stacked by rows, so that projections which share their input are
 * one product. Vectors (biases, norm weights) are [1, n]; their pieces are counted in columns.
 */
export interface WeightEntry {
  readonly id: string
  readonly kind: WeightKind
  readonly rows: number
  readonly cols: number
  readonly pieces: readonly WeightPiece[]
  readonly layer: number
  /** What transformers calls the whole in memory, when that is not the name of its pieces. */
  readonly parameter?: string
  /** Matrices of this many experts, one below the other. */
  readonly experts?: number
}

export const isVector = (entry: WeightEntry): boolean => entry.kind === 'bias' || entry.kind === 'norm'

/** The shape that a piece has in the checkpoint file. */
export const pieceShape = (entry: WeightEntry, piece: WeightPiece): readonly number[] =>
  piece.shape ??
  (isVector(entry) ? [piece.rows] : piece.form?.transposed === true ? [entry.cols, piece.rows] : [piece.rows, entry.cols])

/** The checkpoint's tensor names: models with experts are stored in more than one form. */
export type HasTensor = (name: string) => boolean

interface Projection {
  readonly module: string
  readonly width: number
  readonly shape?: readonly number[]
  readonly form?: StoredForm
}

/**
 * All weights of a model, in the order in which they are used. Ids: `embedding`, `layers.3.qkv`, `layers.3.qkv.bias`, …, `head`.
 * Without `has` experts are taken to be stored one by one, as published checkpoints are.
 */
export function weightTable(spec: ArchSpec, has: HasTensor = () => false): WeightEntry[] {
  const { hidden, names } = spec
  const qWidth = spec.heads * spec.headDim
  const kvWidth = spec.kvHeads * spec.headDim
  const entries: WeightEntry[] = []
  const add = (id: string, kind: WeightKind, cols: number, projections: readonly Projection[], suffix: string, layer: number) => {
    const vector = kind === 'bias' || kind === 'norm'
    let row = 0
    const pieces = projections.map(({ module, width, shape, form }) => {
      const name = `${module}.${suffix}`
      const piece = {
        name,
        row,
        rows: width,
        ...shortened(names.optionalPrefix, name, has),
        ...(shape === undefined ? {} : { shape }),
        ...(form === undefined ? {} : { form }),
      }
      row += width
      return piece
    })
    entries.push({ id, kind, rows: vector ? 1 : row, cols: vector ? row : cols, pieces, layer })
  }
  const norm = (id: string, module: string, width: number, layer: number, bias = false, shape?: readonly number[]) => {
    if (spec.norm.bare === true) return
    add(id, 'norm', width, [{ module, width, ...(shape === undefined ? {} : { shape }) }], 'weight', layer)
    if (bias) add(`${id}.bias`, 'bias', width, [{ module, width }], 'bias', layer)
  }

  add('embedding', 'embedding', hidden, [{ module: names.embedding, width: spec.vocabulary }], 'weight', -1)
  if (spec.learnedPositions === true)
    add('positions', 'embedding', hidden, [{ module: names.positions, width: spec.context }], 'weight', -1)
  for (let layer = 0; layer < spec.layers; ++layer) {
    const at = (name: string) => name.replace('.N.', `.${layer}.`)
    const linear = (id: string, cols: number, projections: readonly Projection[], bias: boolean) => {
      const placed = projections.map(({ module, ...rest }) => ({ ...rest, module: at(module) }))
      const stored =
        spec.transposed === true
          ? placed.map((projection) => ({ ...projection, form: { ...projection.form, transposed: true } }))
          : placed
      add(`layers.${layer}.${id}`, 'linear', cols, stored, 'weight', layer)
      if (bias) add(`layers.${layer}.${id}.bias`, 'bias', cols, placed, 'bias', layer)
    }
    const layerNorm = (id: string, module: string) => norm(`layers.${layer}.${id}`, at(module), hidden, layer, spec.norm.bias)
    const headNorm = (id: string, module: string, width: number, shape?: readonly number[]) =>
      norm(`layers.${layer}.${id}`, at(module), width, layer, false, shape)

    if (spec.block !== 'post') layerNorm('attentionNorm', names.attentionNorm)
    linear(
      'qkv',
      hidden,
      spec.fused.qkv
        ? [
            {
              module: names.qkv,
              width: qWidth + 2 * kvWidth,
              ...(spec.fused.qkvByHead === true
                ? { form: { grouped: { groups: spec.kvHeads, parts: [qWidth / spec.kvHeads, spec.headDim, spec.headDim] } } }
                : {}),
            },
          ]
        : [
            { module: names.q, width: qWidth },
            { module: names.k, width: kvWidth },
            { module: names.v, width: kvWidth },
          ],
      spec.bias.qkv,
    )
    if (spec.qkNorm !== undefined) {
      const { over, weightPerHead } = spec.qkNorm
      for (const [id, module, heads] of [
        ['qNorm', names.qNorm, spec.heads],
        ['kNorm', names.kNorm, spec.kvHeads],
      ] as const) {
        if (weightPerHead) headNorm(id, module, heads * spec.headDim, [heads, spec.headDim])
        else headNorm(id, module, over === 'head' ? spec.headDim : heads * spec.headDim)
      }
    }
    linear('o', qWidth, [{ module: names.o, width: hidden }], spec.bias.o)
    if (spec.block === 'prePost' || spec.block === 'post') layerNorm('attentionPostNorm', names.attentionPostNorm)
    if (spec.block !== 'post' && spec.block !== 'parallel') layerNorm('mlpNorm', names.mlpNorm)
    if (spec.moe?.layers[layer] === true) {
      entries.push(...expertEntries(spec, spec.moe, layer, has))
      const { sharedFfn } = spec.moe
      if (sharedFfn !== undefined) {
        linear(
          'sharedGateUp',
          hidden,
          [
            { module: names.sharedGate, width: sharedFfn },
            { module: names.sharedUp, width: sharedFfn },
          ],
          false,
        )
        linear('sharedDown', sharedFfn, [{ module: names.sharedDown, width: hidden }], false)
        linear('sharedFactor', hidden, [{ module: names.sharedFactor, width: 1 }], false)
      }
    } else if (spec.plainMlp === true) {
      linear('up', hidden, [{ module: names.up, width: spec.ffn }], spec.bias.mlp)
      linear('down', spec.ffn, [{ module: names.down, width: hidden }], spec.bias.mlp)
    } else {
      linear(
        'gateUp',
        hidden,
        spec.fused.gateUp
          ? [{ module: names.gateUp, width: 2 * spec.ffn }]
          : [
              { module: names.gate, width: spec.ffn },
              { module: names.up, width: spec.ffn },
            ],
        spec.bias.mlp,
      )
      linear('down', spec.ffn, [{ module: names.down, width: hidden }], spec.bias.mlp)
    }
    if (spec.block === 'prePost' || spec.block === 'post') layerNorm('mlpPostNorm', names.mlpPostNorm)
  }
  norm('finalNorm', names.finalNorm, hidden, -1, spec.norm.bias)
  if (!spec.tied) {
    add('head', 'head', hidden, [{ module: names.head, width: spec.vocabulary }], 'weight', -1)
    if (names.memory.head !== undefined) entries.push({ ...entries.pop()!, parameter: `${names.memory.head}.weight` })
  }
  if (spec.headBias === true) add('head.bias', 'bias', hidden, [{ module: names.head, width: spec.vocabulary }], 'bias', -1)
  return entries
}

/** Where a file leaves the prefix out, a tensor starts from the shorter name. */
function shortened(prefix: string | undefined, name: string, has: HasTensor): { from?: string } {
  if (prefix === undefined || !name.startsWith(prefix) || has(name)) return {}
  const short = name.slice(prefix.length)
  return has(short) ? { from: short } : {}
}

/** The router and the experts of one layer: each expert its own tensors, or all of them in one of three dimensions. */
function expertEntries({ hidden, names }: ArchSpec, { experts, ffn }: MoeSpec, layer: number, has: HasTensor): WeightEntry[] {
  const at = (name: string, expert = 0) => name.replace('.N.', `.${layer}.`).replace('.E.', `.${expert}.`)
  const routerName = `${at(names.memory.router)}.weight`
  const stack = (
    id: string,
    memory: string,
    file: string | undefined,
    cols: number,
    each: readonly Projection[],
  ): WeightEntry => {
    const width = each.reduce((sum, projection) => sum + projection.width, 0)
    const parameter = at(memory)
    let row = 0
    const single = Array.from({ length: experts }, (_, expert) =>
      each.map(({ module, width: rows }) => {
        const piece = { name: `${at(module, expert)}.weight`, row, rows }
        row += rows
        return piece
      }),
    ).flat()
    const whole = has(parameter) ? parameter : file === undefined ? undefined : at(file)
    const pieces = whole === undefined ? single : [{ name: whole, row: 0, rows: experts * width, shape: [experts, width, cols] }]
    return { id: `layers.${layer}.${id}`, kind: 'experts', rows: experts * width, cols, pieces, layer, parameter, experts }
  }
  return [
    {
      id: `layers.${layer}.router`,
      kind: 'router',
      rows: experts,
      cols: hidden,
      layer,
      parameter: routerName,
      pieces: [{ name: has(routerName) ? routerName : `${at(names.router)}.weight`, row: 0, rows: experts }],
    },
    stack('expertGateUp', names.memory.expertGateUp, names.stackedExperts?.gateUp, hidden, [
      { module: names.expertGate, width: ffn },
      { module: names.expertUp, width: ffn },
    ]),
    stack('expertDown', names.memory.expertDown, names.stackedExperts?.down, ffn, [{ module: names.expertDown, width: hidden }]),
  ]
}

export const parameterCount = (entries: readonly WeightEntry[]): number =>
  entries.reduce((sum, { rows, cols }) => sum + rows * cols, 0)
