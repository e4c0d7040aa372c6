import { bytesPerElement, type DType } from '../graph/dtype.ts'
import type { Target } from '../graph/target.ts'
import { whole, type Arena, type Storage, type Tensor } from '../graph/graph.ts'
import type { Dora, LoraGroup, Weight } from '../graph/ops/linear.ts'
import type { StoredForm } from '../model/storedForm.ts'
import { pieceShape, type WeightEntry } from '../model/weightTable.ts'
import type { LoraModule } from './lora.ts'

export type ParameterGroup = 'default' | 'embedding' | 'loraB'

/** Learning rates; a group without its own has the default's. */
export type ParameterRates = { readonly default: number } & Partial<Readonly<Record<ParameterGroup, number>>>

/** One trained matrix in the flat fp32 parameter arena; gradients and moments stand at the same offsets of their arenas. */
export interface Parameter {
  /** `<module>.lora_A.weight`, `.lora_B.weight` or `.lora_magnitude_vector`, or the checkpoint's tensor name. */
  readonly name: string
  readonly rows: number
  readonly cols: number
  /** Checkpoint shape. */
  readonly shape: readonly number[]
  /** Present when files order the elements otherwise than the arena. */
  readonly form?: StoredForm | undefined
  /** First element in the arena. */
  readonly offset: number
  readonly group: ParameterGroup
  readonly decay: boolean
  /** An embedding, whose moments stay in 32 bits. */
  readonly embedding?: true
}

/** A stretch of the arena that the optimizer treats alike. */
export interface ParameterRange {
  readonly group: ParameterGroup
  readonly decay: boolean
  readonly offset: number
  readonly elements: number
}

export interface ParameterLayout {
  readonly parameters: readonly Parameter[]
  readonly ranges: readonly ParameterRange[]
  /** Elements of the arena, padding included. */
  readonly elements: number
  /** The trained form of a weight, or undefined when it is frozen. */
  readonly weights: ReadonlyMap<string, Weight>
  readonly lora: ReadonlyMap<string, LoraGroup>
  /** Size of the arena of `LoraGroup.dora`; 0 without DoRA. */
  readonly doraBytes: number
}

/** Matrices start at multiples of this many elements. */
const unit = 64
const roundUp = (elements: number): number => Math.ceil(elements / unit) * unit

interface Block {
  readonly group: ParameterGroup
  readonly decay: boolean
  readonly embedding?: true
  readonly pieces: readonly {
    readonly name: string
    readonly rows: number
    readonly cols: number
    readonly shape: readonly number[]
    readonly form?: StoredForm | undefined
  }[]
  readonly place: (offset: number) => void
}

/**
 * Lays out everything that is trained. `full` entries are trained as they are; LoRA modules get A and B, the As of one weight
 * stacked so that one product serves them all. Decayed and undecayed, default and embedding parameters stand in separate
 * stretches. Biases and norms are not decayed, as in transformers; with LoRA+ all vectors learn at the rate of B, as in PEFT.
 */
export function parameterLayout(
  full: readonly WeightEntry[],
  modules: readonly LoraModule[],
  embeddingGroup: boolean,
  type: Target['parameters'] = 'f32',
  loraPlus = false,
): ParameterLayout {
  const trained = trainedAs(type)
  const weights = new Map<string, Weight>()
  const lora = new Map<string, LoraGroup>()
  const blocks = [
    ...full.map((entry) => fullBlock(entry, weights, embeddingGroup, trained, loraPlus)),
    ...loraBlocks(modules, lora, trained, loraPlus ? 'loraB' : 'default'),
  ]
  const parameters: Parameter[] = []
  const ranges: ParameterRange[] = []
  let elements = 0
  for (const group of ['default', 'embedding', 'loraB'] as const) {
    for (const decay of [true, false]) {
      const mine = blocks.filter((block) => block.group === group && block.decay === decay)
      const start = elements
      for (const block of mine) {
        block.place(elements)
        let at = elements
        for (const { name, rows, cols, shape, form } of block.pieces) {
          parameters.push({
            name,
            rows,
            cols,
            shape,
            form,
            offset: at,
            group,
            decay,
            ...(block.embedding === true ? { embedding: true } : {}),
          })
          at += rows * cols
        }
        elements = roundUp(at)
      }
      if (elements > start) ranges.push({ group, decay, offset: start, elements: elements - start })
    }
  }
  const doraBytes = [...lora.values()].reduce(
    (bytes, { dora }) => Math.max(bytes, dora === undefined ? 0 : dora.gain.storage.offset + roundUp(dora.gain.cols) * 4),
    0,
  )
  return { parameters, ranges, elements, weights, lora, doraBytes }
}

/** A matrix of the flat arenas, `offset` in elements. */
export function parameterTensor(
  name: string,
  arena: Arena,
  offset: number,
  rows: number,
  cols: number,
  dtype: DType = 'f32',
): Tensor {
  const at = offset * bytesPerElement(dtype)
  const storage: Storage = { name, arena, offset: at, dtype, rows, cols, rule: 'fixed', keep: 'residual', layer: -1 }
  return whole(storage)
}

type MakeTrained = (name: string, offset: number, rows: number, cols: number) => Weight

const trainedAs =
  (type: Target['parameters']): MakeTrained =>
  (name, offset, rows, cols) => {
    const master = parameterTensor(name, 'params', offset, rows, cols)
    const grad = parameterTensor(`d ${name}`, 'grads', offset, rows, cols)
    return type === 'f32'
      ? { value: master, grad }
      : { value: parameterTensor(name, 'shadow', offset, rows, cols, type), master, grad }
  }

function fullBlock(
  entry: WeightEntry,
  weights: Map<string, Weight>,
  embeddingGroup: boolean,
  trained: MakeTrained,
  loraPlus: boolean,
): Block {
  const vector = entry.kind === 'bias' || entry.kind === 'norm'
  const group =
    embeddingGroup && (entry.kind === 'embedding' || entry.kind === 'head')
      ? 'embedding'
      : loraPlus && vector
        ? 'loraB'
        : 'default'
  return {
    group,
    decay: !vector,
    ...(entry.kind === 'embedding' ? { embedding: true } : {}),
    pieces: entry.pieces.map((piece) => ({
      name: piece.name,
      shape: pieceShape(entry, piece),
      form: piece.form,
      ...(vector ? { rows: 1, cols: piece.rows } : { rows: piece.rows, cols: entry.cols }),
    })),
    place: (offset) => weights.set(entry.id, trained(entry.id, offset, entry.rows, entry.cols)),
  }
}

/** Rows of A and columns of B: those of all experts together. */
const ranksOf = ({ rank, experts }: LoraModule): number => rank * (experts ?? 1)

function loraBlocks(
  modules: readonly LoraModule[],
  groups: Map<string, LoraGroup>,
  trained: MakeTrained,
  groupOfB: ParameterGroup,
): Block[] {
  const byWeight = new Map<string, LoraModule[]>()
  for (const module of modules) byWeight.set(module.weightId, [...(byWeight.get(module.weightId) ?? []), module])
  const site = new Map(modules.map((module, index) => [module, index]))
  const blocks: Block[] = []
  let doraElements = 0
  for (const [weightId, members] of byWeight) {
    const rank = members.reduce((sum, module) => sum + ranksOf(module), 0)
    const inputs = members[0]!.inputs
    const offsets = { a: 0, b: members.map(() => 0), magnitudes: 0 }
    const rows = members[0]!.weightRows
    const doraAt = doraElements
    const dora = members.some((module) => module.dora === true)
    if (dora) doraElements += 3 * roundUp(rows)
    /** Called after every placement; complete once all matrices of the weight have their place. */
    const assemble = () => {
      let row = 0
      const parts = members.map((module, index) => {
        const rank = ranksOf(module)
        const a = trained(`${module.module}.lora_A`, offsets.a + row * inputs, rank, inputs)
        row += rank
        const b = trained(`${module.module}.lora_B`, offsets.b[index]!, module.width, rank)
        const { column, width, scale } = module
        return {
          column,
          width,
          rank: module.rank,
          a,
          b,
          scale,
          ...(module.dropout > 0 ? { dropout: { p: module.dropout, site: site.get(module)! } } : {}),
        }
      })
      const dense = members.every(({ experts }) => experts === undefined)
      const stackable = dense && members.every(({ dropout }) => dropout === 0)
      const [first, width] = [members[0]!, members.reduce((sum, module) => sum + module.width, 0)]
      const together =
        dense &&
        members.every(
          (module, i) =>
            module.rank === first.rank && (i === 0 || offsets.b[i] === offsets.b[i - 1]! + members[i - 1]!.width * first.rank),
        )
      groups.set(weightId, {
        parts,
        ...(dora ? { dora: doraRows(weightId, members, rows, doraAt, offsets.magnitudes, trained) } : {}),
        ...(stackable ? { stackedA: trained(`${weightId}.lora_A`, offsets.a, rank, inputs) } : {}),
        ...(together ? { stackedB: trained(`${weightId}.lora_B`, offsets.b[0]!, width, first.rank) } : {}),
      })
    }
    blocks.push({
      group: 'default',
      decay: true,
      pieces: members.map((module) => ({
        name: `${module.module}.lora_A.weight`,
        rows: ranksOf(module),
        cols: inputs,
        shape: [ranksOf(module), inputs],
      })),
      place: (offset) => {
        offsets.a = offset
        assemble()
      },
    })
    members.forEach((module, index) => {
      blocks.push({
        group: groupOfB,
        decay: true,
        pieces: [
          {
            name: `${module.module}.lora_B.weight`,
            rows: module.width,
            cols: ranksOf(module),
            shape: [module.width, ranksOf(module)],
            form: module.form,
          },
        ],
        place: (offset) => {
          offsets.b[index] = offset
          assemble()
        },
      })
    })
    if (dora)
      blocks.push({
        group: groupOfB,
        decay: true,
        pieces: members.map((module) => ({
          name: `${module.module}.lora_magnitude_vector`,
          rows: 1,
          cols: module.width,
          shape: [module.width],
          form: module.form,
        })),
        place: (offset) => {
          offsets.magnitudes = offset
          assemble()
        },
      })
  }
  return blocks
}

/** Lengths of a weight's rows in their own arena, and the magnitudes of its modules, which stand one after another from `offset` on. */
function doraRows(
  weightId: string,
  members: readonly LoraModule[],
  rows: number,
  doraAt: number,
  offset: number,
  trained: MakeTrained,
): Dora {
  const stretches: { column: number; width: number; offset: number }[] = []
  let at = offset
  for (const { column, width } of members) {
    const last = stretches.at(-1)
    if (last !== undefined && last.column + last.width === column) last.width += width
    else stretches.push({ column, width, offset: at })
    at += width
  }
  const row = (name: string, index: number) =>
    parameterTensor(`${weightId}.${name}`, 'dora', doraAt + index * roundUp(rows), 1, rows)
  return {
    squares: row('squares', 0),
    norm: row('norm', 1),
    gain: row('gain', 2),
    magnitudes: stretches.map((stretch) => ({
      column: stretch.column,
      width: stretch.width,
      value: trained(`${weightId}.lora_magnitude_vector`, stretch.offset, 1, stretch.width),
    })),
  }
}
