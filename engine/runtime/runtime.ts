import { UnslothError } from '#shared/errors.ts'
import { encodePlan, type EncodedPlan } from '../graph/encodePlan.ts'
import type { Arena, Capacity } from '../graph/graph.ts'
import type { Plan } from '../graph/plan.ts'
import { scratchBytes } from '../graph/scratchBytes.ts'
import {
  fromNative,
  native,
  type LoadPart,
  type NativeDevice,
  type Place,
  type QuantisedPart,
  type RunResult,
} from '../native.ts'
import { physicalCores } from './cores.ts'
import { TimedProducts } from './gemmChoices.ts'
import { arenaNames, refusedMemory } from './refusedMemory.ts'

/** Rows of one run; see RowRule. */
export type Rows = Capacity

type WithoutBuffer<T> = T extends unknown ? Omit<T, 'buffer'> : never

/** Where to compute. */
export type DeviceChoice = { readonly kind: 'cpu'; readonly threads: number } | { readonly kind: 'cuda'; readonly index: number }

/** What kernels are launched for, and how much of it is not padding. */
export interface RunRows {
  readonly padded: Rows
  readonly live: Rows
}

const none: Rows = { tokens: 0, labelled: 0, sequences: 0 }
const noRows: RunRows = { padded: none, live: none }

/** A device with its arenas: the only holder of device memory. Plans compiled on it stay valid when an arena grows. */
export class Runtime {
  readonly choice: DeviceChoice
  private readonly device: NativeDevice
  private readonly products: TimedProducts | undefined
  private readonly buffers = new Map<Arena, { handle: number; bytes: number; place: Place; version: number }>()
  private stopRequested = false

  constructor(choice: DeviceChoice) {
    this.choice = choice
    try {
      this.device = new (native().Device)(choice.kind, choice.kind === 'cpu' ? choice.threads : choice.index)
    } catch (error) {
      throw fromNative(error, `Opening the ${choice.kind} device failed`)
    }
    if (choice.kind === 'cuda') this.products = new TimedProducts(choice.index)
  }

  /** Makes an arena at least this large. Contents are lost when it has to grow or to move. */
  reserve(arena: Arena, bytes: number, place: Place = 'device'): void {
    const known = this.buffers.get(arena)
    if (known !== undefined && known.bytes >= bytes && known.place === place) return
    if (known !== undefined) this.device.free(known.handle)
    this.buffers.delete(arena)
    try {
      this.buffers.set(arena, { handle: this.device.alloc(bytes, place), bytes, place, version: (known?.version ?? 0) + 1 })
    } catch (error) {
      throw refusedMemory(error, this.choice, { bytes, place, what: arenaNames[arena] })
    }
  }

  release(arena: Arena): void {
    const known = this.buffers.get(arena)
    if (known !== undefined) this.device.free(known.handle)
    this.buffers.delete(arena)
  }

  private buffer(arena: Arena) {
    const known = this.buffers.get(arena)
    if (known === undefined) throw new UnslothError('INTERNAL', `the ${arena} arena was never reserved`)
    return known
  }

  /** What the device has reserved in all; see NativeDevice. */
  reserved(): ReturnType<NativeDevice['reserved']> {
    return this.device.reserved()
  }

  bytesOf(arena: Arena): number {
    return this.buffers.get(arena)?.bytes ?? 0
  }

  write(arena: Arena, offset: number, data: NodeJS.TypedArray): void {
    if (data.byteLength > 0) this.device.write(this.buffer(arena).handle, offset, data)
  }

  read(arena: Arena, offset: number, bytes: number): ArrayBuffer {
    return this.device.read(this.buffer(arena).handle, offset, bytes)
  }

  /** The contents as the commands started so far leave them; later ones may be started before it resolves. */
  async readLater(arena: Arena, offset: number, bytes: number): Promise<ArrayBuffer> {
    try {
      return await this.device.readLater(this.buffer(arena).handle, offset, bytes)
    } catch (error) {
      throw fromNative(error, 'A command failed')
    }
  }

  readFloats(arena: Arena, offset: number, elements: number): Float32Array<ArrayBuffer> {
    return new Float32Array(this.read(arena, offset, elements * 4))
  }

  /** Copies tensors from files into an arena; resolves to the count of non-finite elements of each. */
  async load(arena: Arena, parts: readonly Omit<LoadPart, 'buffer'>[]): Promise<Float64Array> {
    const { handle } = this.buffer(arena)
    try {
      return await this.device.load(parts.map((part) => ({ ...part, buffer: handle })))
    } catch (error) {
      throw fromNative(error, 'Loading weights failed')
    }
  }

  /** The same for one tensor that is quantised, in the file or on the way in. */
  async loadQuantised(arena: Arena, part: WithoutBuffer<QuantisedPart>): Promise<number> {
    const { handle } = this.buffer(arena)
    try {
      return await this.device.loadQuantised(
        { ...part, buffer: handle },
        this.choice.kind === 'cpu' ? this.choice.threads : physicalCores(),
      )
    } catch (error) {
      throw fromNative(error, 'Loading weights failed')
    }
  }

  async fillUniform(
    arena: Arena,
    offset: number,
    elements: number,
    dtype: number,
    range: readonly [number, number],
    seed: number,
    stream: number,
  ): Promise<void> {
    await this.device.fillUniform(this.buffer(arena).handle, offset, elements, dtype, range[0], range[1], seed, stream)
  }

  compile(plan: Plan): CompiledPlan {
    const encoded = encodePlan(plan)
    if (encoded.arenas.includes('activations')) this.reserve('activations', plan.activationBytes)
    if (encoded.arenas.includes('offloaded')) this.reserve('offloaded', plan.offloadedBytes, 'host')
    if (this.choice.kind === 'cuda') this.reserveScratch(scratchBytes({ kind: 'cuda' }, plan.commands, 0))
    return new CompiledPlan(this, encoded, plan.commands.length)
  }

  private reserveScratch(bytes: number): void {
    try {
      this.device.reserveScratch(bytes)
    } catch (error) {
      throw refusedMemory(error, this.choice, { bytes, place: 'device', what: 'kernel scratch' })
    }
  }

  /** For CompiledPlan: the native plan over today's buffers. */
  instantiate(
    encoded: EncodedPlan,
    previous: { plan: number; versions: string } | undefined,
  ): { plan: number; versions: string } {
    const buffers = encoded.arenas.map((arena) => this.buffer(arena))
    const versions = buffers.map(({ handle, version }) => `${handle}.${version}`).join()
    if (previous?.versions === versions) return previous
    if (previous !== undefined) this.device.freePlan(previous.plan)
    try {
      return {
        plan: this.device.createPlan(
          encoded.tensors,
          encoded.commands,
          encoded.floats,
          Int32Array.from(buffers, ({ handle }) => handle),
        ),
        versions,
      }
    } catch (error) {
      throw fromNative(error, 'The plan was refused')
    }
  }

  async run(plan: number, rows: RunRows, first: number, last: number, profile: boolean): Promise<RunResult> {
    let result: RunResult
    const { padded, live } = rows
    const counts = Int32Array.of(padded.tokens, padded.labelled, padded.sequences, live.tokens, live.labelled, live.sequences)
    try {
      result = await this.device.run(plan, counts, first, last, profile)
    } catch (error) {
      throw fromNative(error, 'A command failed')
    }
    this.products?.keep()
    if (result.stopped) throw new UnslothError('STOPPED', 'The computation was stopped.')
    return result
  }

  /** Resolves when everything that was started is done. */
  async synchronise(): Promise<void> {
    try {
      await this.device.synchronise()
    } catch (error) {
      throw fromNative(error, 'A command failed')
    }
  }

  /** Stops the computation in progress between two commands: its promise rejects with STOPPED. */
  stop(): void {
    this.stopRequested = true
    this.device.requestStop()
  }

  get stopping(): boolean {
    return this.stopRequested
  }

  clearStop(): void {
    this.stopRequested = false
    this.device.clearStop()
  }

  dispose(): void {
    this.device.dispose()
    this.buffers.clear()
  }
}

/** A plan on a device. */
export class CompiledPlan {
  readonly commands: number
  private readonly runtime: Runtime
  private readonly encoded: EncodedPlan
  private instance: { plan: number; versions: string } | undefined

  constructor(runtime: Runtime, encoded: EncodedPlan, commands: number) {
    this.runtime = runtime
    this.encoded = encoded
    this.commands = commands
  }

  /** Runs commands [first, last) off the JavaScript thread. */
  async run(rows: RunRows = noRows, first = 0, last = this.commands): Promise<void> {
    this.instance = this.runtime.instantiate(this.encoded, this.instance)
    await this.runtime.run(this.instance.plan, rows, first, last, false)
  }

  /** Runs everything and tells the seconds of each command. */
  async profile(rows: RunRows = noRows): Promise<Float64Array> {
    this.instance = this.runtime.instantiate(this.encoded, this.instance)
    return (await this.runtime.run(this.instance.plan, rows, 0, this.commands, true)).seconds
  }
}
