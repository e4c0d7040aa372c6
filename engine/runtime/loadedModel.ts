import { UnslothError } from '#shared/errors.ts'
import { bytesPerElement, dtypeCode } from '../graph/dtype.ts'
import { planMemory } from '../graph/plan.ts'
import type { Target } from '../graph/target.ts'
import { doraSquares } from '../patch/dora.ts'
import { refreshCommands } from '../patch/shadow.ts'
import type { ArchSpec } from '../model/archSpec.ts'
import type { DecoderWeights } from '../model/decoder.ts'
import { toFileForm, toGraphForm } from '../model/storedForm.ts'
import type { LoraModule } from '../patch/lora.ts'
import { baseWeights, evaluatedWeights, type PatchedModel } from './patchedModel.ts'
import type { CompiledPlan, Runtime } from './runtime.ts'
import { PrincipalInit, type Principal } from './principalInit.ts'
import type { UnpackedWeights } from './unpackedWeights.ts'
import { loadInto, parameterParts, type WeightArena } from './weightArena.ts'

export interface LoadOptions {
  /** Of new adapters. */
  readonly seed: number
  /** Elements read so far, of how many. */
  readonly progress?: (done: number, total: number) => void
}

/** Streams of random numbers beside those of the adapters' A. */
const secondStream = 2 ** 24

/** A vector's elements are what its form orders. */
const formShape = (rows: number, cols: number): [number, number] => (rows === 1 ? [cols, 1] : [rows, cols])

/** Takes the memory of frozen weights. */
export function reserveWeights({ bytes, hostBytes }: WeightArena, runtime: Runtime): void {
  runtime.reserve('weights', bytes)
  if (hostBytes > 0) runtime.reserve('hostWeights', hostBytes, 'host')
}

/** A patched model on a device. */
export class LoadedModel {
  readonly patched: PatchedModel
  readonly runtime: Runtime
  private readonly refreshed: CompiledPlan | undefined
  private isStale = true
  private unpacking: CompiledPlan | undefined
  /** What adapters of `pissa` started with, which the weights have lost: an adapter for the model's own files has it taken off. */
  readonly starts = new Map<string, Principal>()

  private constructor(patched: PatchedModel, runtime: Runtime) {
    this.patched = patched
    this.runtime = runtime
    const { layout, target } = patched
    const commands = refreshCommands(layout, patched.arena.weights, target)
    if (commands.length === 0) return
    if (target.parameters !== 'f32') runtime.reserve('shadow', layout.elements * bytesPerElement(target.parameters))
    if (layout.doraBytes > 0) {
      runtime.reserve('dora', layout.doraBytes)
      runtime.write('dora', 0, new Float32Array(layout.doraBytes / 4).fill(1))
    }
    this.refreshed = runtime.compile(planMemory(commands))
  }

  get target(): Target {
    return this.patched.target
  }

  /** Keeps these matrices unpacked beside the packed ones; plans that were built with them find them there after `refreshShadow`. */
  keepUnpacked({ bytes, commands }: UnpackedWeights): void {
    if (bytes === 0) return
    this.runtime.reserve('unpacked', bytes)
    this.unpacking = this.runtime.compile(planMemory(commands))
  }

  /** Makes what follows from the trained matrices, when they were written since: see refreshCommands. To be called before a plan runs. */
  async refreshShadow(): Promise<void> {
    await this.unpacking?.run()
    this.unpacking = undefined
    if (!this.isStale) return
    await this.refreshed?.run()
    this.isStale = false
  }

  get spec(): ArchSpec {
    return this.patched.model.spec
  }

  /** Reads the weights from the model's folder. */
  static async load(patched: PatchedModel, runtime: Runtime, options: LoadOptions): Promise<LoadedModel> {
    const { arena, layout, full, model } = patched
    reserveWeights(arena, runtime)
    for (const { offset, bytes } of arena.writes) runtime.write('weights', offset, bytes)
    await loadInto(runtime, 'weights', arena.parts, options.progress)
    await loadInto(runtime, 'hostWeights', arena.hostParts, options.progress)
    if (layout.elements > 0) {
      runtime.reserve('params', layout.elements * 4)
      await loadInto(runtime, 'params', parameterParts(full, model, layout.parameters), options.progress)
    }
    return LoadedModel.initialise(patched, runtime, options)
  }

  /** Starts adapters over weights that stand in the arenas. */
  static async initialise(patched: PatchedModel, runtime: Runtime, options: LoadOptions): Promise<LoadedModel> {
    const model = new LoadedModel(patched, runtime)
    const principal = new PrincipalInit(patched, runtime, options.seed)
    for (const [index, module] of patched.modules.entries()) await model.initialiseAdapter(module, index, options.seed, principal)
    principal.release()
    await model.initialiseMagnitudes()
    return model
  }

  /**
   * As PEFT does: A uniform in ±1/√in (kaiming, a = √5) and B zero; `gaussian`: A normal with deviation 1/r; `false`: both are
   * uniform, so that the adapter does something from the start. `pissa` and `loftq`: see PrincipalInit.
   */
  private async initialiseAdapter(target: LoraModule, index: number, seed: number, principal: PrincipalInit): Promise<void> {
    const { module, inputs, rank, form } = target
    const { training } = this.patched
    const init = training.kind === 'lora' ? (training.init ?? true) : true
    const fill = async (name: string, low: number, high: number, stream: number) => {
      const { offset, rows, cols } = this.parameter(name)
      await this.runtime.fillUniform('params', offset * 4, rows * cols, dtypeCode('f32'), [low, high], seed, stream)
      return name
    }
    const [a, b] = [`${module}.lora_A.weight`, `${module}.lora_B.weight`]
    if (init === 'gaussian') {
      // Box and Muller (1958), from two streams of uniform numbers.
      const radius = this.readParameter(await fill(a, 0, 1, index))
      const angle = this.readParameter(await fill(a, 0, 1, index + secondStream))
      this.writeParameter(
        a,
        radius.map((u, i) => (Math.sqrt(-2 * Math.log(1 - u)) * Math.cos(2 * Math.PI * angle[i]!)) / rank),
      )
      return
    }
    if (init === 'pissa' || init === 'loftq') {
      const start = await principal[init](target, index)
      const stored = form === undefined ? start.b : toFileForm(start.b, form, target.width, rank)
      if (init === 'pissa') this.starts.set(module, { a: start.a, b: stored })
      this.writeParameter(a, start.a)
      this.writeParameter(b, stored)
      return
    }
    await fill(a, -1 / Math.sqrt(inputs), 1 / Math.sqrt(inputs), index)
    if (!init) await fill(b, -1 / Math.sqrt(rank), 1 / Math.sqrt(rank), index + secondStream)
  }

  /** DoRA: rows start with the lengths that they have. */
  private async initialiseMagnitudes(): Promise<void> {
    const { layout, arena } = this.patched
    if (layout.doraBytes === 0) return
    const { commands, cacheBytes } = doraSquares(layout, arena.weights)
    this.runtime.reserve('cache', cacheBytes)
    await this.runtime.compile(planMemory(commands)).run()
    this.runtime.release('cache')
    await this.refreshShadow()
    for (const { dora } of layout.lora.values())
      for (const { column, width, value } of dora?.magnitudes ?? [])
        this.runtime.write(
          'params',
          (value.master ?? value.value).storage.offset,
          this.runtime.readFloats('dora', dora!.norm.storage.offset + column * 4, width),
        )
    this.isStale = true
  }

  /** See evaluatedWeights. */
  get trained(): DecoderWeights {
    return evaluatedWeights(this.patched)
  }

  /** See baseWeights. */
  get base(): DecoderWeights {
    return baseWeights(this.patched)
  }

  /** Current values of one trained matrix, as files have them. */
  readParameter(name: string): Float32Array<ArrayBuffer> {
    return this.readMatrix('params', name)
  }

  private readMatrix(arena: 'params' | 'grads', name: string): Float32Array<ArrayBuffer> {
    const { offset, rows, cols, form } = this.parameter(name)
    const values = this.runtime.readFloats(arena, offset * 4, rows * cols)
    return form === undefined ? values : toFileForm(values, form, ...formShape(rows, cols))
  }

  writeParameter(name: string, values: Float32Array): void {
    const { offset, rows, cols, form } = this.parameter(name)
    if (values.length !== rows * cols)
      throw new UnslothError('MODEL_INVALID', `${name} has ${values.length} numbers, but ${rows}x${cols} are needed.`)
    this.isStale = true
    this.runtime.write('params', offset * 4, form === undefined ? values : toGraphForm(values, form, ...formShape(rows, cols)))
  }

  readGradient(name: string): Float32Array<ArrayBuffer> {
    return this.readMatrix('grads', name)
  }

  private parameter(name: string) {
    const parameter = this.patched.layout.parameters.find((candidate) => candidate.name === name)
    if (parameter === undefined) throw new UnslothError('MODEL_INVALID', `${name} is not trained here.`)
    return parameter
  }
}
