import { UnslothError } from '#shared/errors.ts'
import { bytesPerElement } from '../graph/dtype.ts'
import { isPlanned, type Storage, type Tile } from '../graph/graph.ts'
import { stepScalarBytes } from '../graph/stepScalars.ts'
import { bfloat16ToNumber, halfToNumber } from '../io/tensorConvert.ts'
import type { ArchSpec, AttentionKind } from '../model/archSpec.ts'
import type { IoSlot, StepPlan } from '../model/stepGraph.ts'
import { padStep } from './padStep.ts'
import type { CompiledPlan, RunRows, Runtime } from './runtime.ts'

/** Packed tokens of one micro-step, as the plans take them. Unlabelled fields may be left out where a plan has no such input. */
export interface PackedTokens {
  readonly ids: Int32Array
  readonly positions: Int32Array
  /** First row of each sequence, and one past the last. */
  readonly qStart: Int32Array
  readonly kvStart: Int32Array
  readonly kvLength: Int32Array
  /** Rows whose next token is scored (or whose logits are wanted). */
  readonly labelIndex: Int32Array
  readonly labels?: Int32Array
  readonly weights?: Float32Array
  /** (sample, position) of each token. */
  readonly tokenKeys?: Int32Array
  /** Rows of the key/value cache that the tokens go to. */
  readonly slots?: Int32Array
  /** Length that decides a sequence's rope frequencies; kvLength when absent. */
  readonly ropeLength?: Int32Array
  /** This micro-step's share of the routers' balance loss; the sum of `weights` when absent, so that the shares of a step add up to 1. */
  readonly balanceShare?: number
}

/** Feeds one plan and fetches its results. */
export class StepRunner {
  readonly step: StepPlan
  private readonly runtime: Runtime
  private readonly spec: ArchSpec
  private readonly compiled: CompiledPlan
  private readonly staging: Uint8Array<ArrayBuffer>

  constructor(runtime: Runtime, spec: ArchSpec, step: StepPlan) {
    this.runtime = runtime
    this.spec = spec
    this.step = step
    this.staging = new Uint8Array(step.inputBytes)
    runtime.reserve('io', step.ioBytes)
    runtime.reserve('scalars', stepScalarBytes)
    this.compiled = runtime.compile(step.plan)
  }

  /** Runs the plan on these tokens. `random` = (seed, optimizer step), for dropout. */
  async run(tokens: PackedTokens, random?: { seed: number; step: number }): Promise<void> {
    await this.compiled.run(this.feed(tokens, random))
  }

  async profile(tokens: PackedTokens, random?: { seed: number; step: number }): Promise<Float64Array> {
    return this.compiled.profile(this.feed(tokens, random))
  }

  /** Runs a stretch of the commands; what earlier ones left in the arenas is what they see. */
  async runCommands(tokens: PackedTokens, random: { seed: number; step: number }, first: number, last: number): Promise<void> {
    await this.compiled.run(this.feed(tokens, random), first, last)
  }

  /**
   * Live rows of an activation as the last run left them, of one tile where given, widened; meaningful only until another one takes its
   * place.
   */
  readActivation(storage: Storage, tokens: PackedTokens, tile?: Tile): Float32Array<ArrayBuffer> {
    const { rule, cols, dtype, repeat = 1 } = storage
    const live = {
      fixed: storage.rows,
      tokens: tokens.ids.length,
      labelled: tokens.labelIndex.length,
      sequences: tokens.kvLength.length,
    }[rule]
    const part = rule === 'fixed' ? undefined : tile
    const rows = part === undefined ? live * repeat : Math.max(0, Math.min(part.rows, live - part.first))
    const first = part === undefined || storage.tiled === true ? 0 : part.first
    const width = cols * bytesPerElement(dtype)
    const start = isPlanned(storage) ? this.step.plan.offsets.get(storage)! : storage.offset
    const bytes = this.runtime.read(storage.arena, start + first * width, rows * width)
    if (storage.dtype === 'f32') return new Float32Array(bytes)
    const toNumber = storage.dtype === 'bf16' ? bfloat16ToNumber : halfToNumber
    return Float32Array.from(new Uint16Array(bytes), toNumber)
  }

  /** A result matrix's first `rows` rows. */
  read(name: string, rows: number): Float32Array<ArrayBuffer> {
    const { offset, cols } = this.slot(name)
    return this.runtime.readFloats('io', offset, rows * cols)
  }

  /** What the routers' balance loss adds to the loss of the last run: 0 where the plan has none. */
  balanceTerm(tokens: PackedTokens): number {
    return this.step.io.balanceLoss === undefined ? 0 : this.balanceWeight(tokens) * this.read('balanceLoss', 1)[0]!
  }

  private balanceWeight({ balanceShare, weights }: PackedTokens): number {
    return (this.spec.moe?.balance ?? 0) * (balanceShare ?? weights?.reduce((sum, weight) => sum + weight, 0) ?? 1)
  }

  private slot(name: string): IoSlot {
    const slot = this.step.io[name]
    if (slot === undefined) throw new UnslothError('INTERNAL', `this plan has no "${name}"`)
    return slot
  }

  private feed(given: PackedTokens, random?: { seed: number; step: number }): RunRows {
    const { capacity, io } = this.step
    const live = { tokens: given.ids.length, labelled: given.labelIndex.length, sequences: given.kvLength.length }
    for (const key of ['tokens', 'labelled', 'sequences'] as const)
      if (live[key] > capacity[key])
        throw new UnslothError('INTERNAL', `a micro-step has ${live[key]} ${key}, its plan was built for ${capacity[key]}`)
    const tokens = padStep(given, this.step.rowMultiple)
    const padded = { tokens: tokens.ids.length, labelled: tokens.labelIndex.length, sequences: tokens.kvLength.length }
    const put = (name: string, data: Int32Array | Float32Array | undefined) => {
      const slot = io[name]
      if (slot === undefined) return
      if (data === undefined) throw new UnslothError('INTERNAL', `this plan needs "${name}"`)
      if (data.length > slot.rows * slot.cols)
        throw new UnslothError('INTERNAL', `"${name}" has ${data.length} numbers, its place is for ${slot.rows * slot.cols}`)
      this.staging.set(new Uint8Array(data.buffer, data.byteOffset, data.length * bytesPerElement(slot.dtype)), slot.offset)
    }
    put('ids', tokens.ids)
    put('positions', tokens.positions)
    put('qStart', tokens.qStart)
    put('kvStart', tokens.kvStart)
    put('kvLength', tokens.kvLength)
    put('labelIndex', tokens.labelIndex)
    put('labels', tokens.labels)
    put('weights', tokens.weights)
    put('balanceWeight', Float32Array.of(this.balanceWeight(given)))
    put('tokenKeys', tokens.tokenKeys)
    if (io.noiseScale !== undefined) put('noiseScale', noiseScales(tokens, this.spec.hidden))
    put('slots', tokens.slots)
    if (random !== undefined) put('random', Int32Array.of(random.seed, random.step))
    for (const kind of ['full', 'window'] as const) if (io[`ropeTable.${kind}`] !== undefined) this.feedRope(kind, tokens, put)
    this.runtime.write('io', 0, this.staging)
    return { padded, live }
  }

  /** Frequencies are decided for each sequence by its own length, so that packing changes nothing. */
  private feedRope(
    kind: AttentionKind,
    tokens: PackedTokens,
    put: (name: string, data: Int32Array | Float32Array) => void,
  ): void {
    const rope = this.spec.rope[kind]
    const lengths = tokens.ropeLength ?? tokens.kvLength
    const tables = new Map<string, number>()
    const inverse: number[] = []
    const factors: number[] = []
    const ofToken = new Int32Array(tokens.ids.length)
    lengths.forEach((length, sequence) => {
      const { key, inverse: frequencies, factor } = rope.table(length)
      let index = tables.get(key)
      if (index === undefined) {
        index = tables.size
        tables.set(key, index)
        inverse.push(...frequencies)
        factors.push(factor)
      }
      ofToken.fill(index, tokens.qStart[sequence], tokens.qStart[sequence + 1])
    })
    put(`ropeTable.${kind}`, ofToken)
    put(`ropeInverse.${kind}`, Float32Array.from(inverse))
    put(`ropeFactor.${kind}`, Float32Array.from(factors))
  }
}

/** 1/√(tokens · width) of each token's sequence; see `noise` in commands.ts. Padding has none. */
function noiseScales({ ids, qStart, kvLength }: PackedTokens, width: number): Float32Array {
  const scales = new Float32Array(ids.length)
  kvLength.forEach((length, sequence) =>
    scales.fill(1 / Math.sqrt(Math.max(1, length) * width), qStart[sequence], qStart[sequence + 1]),
  )
  return scales
}
