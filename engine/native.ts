import { createRequire } from 'node:module'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { UnslothError, errorCodes } from '#shared/errors.ts'
import { commandNames } from './graph/commands.ts'
import { projectRoot } from './projectRoot.ts'

/** Memory of the device, or of the system: locked, so that a GPU reads and writes it by its address. The same on a processor. */
export type Place = 'device' | 'host'

/** The typed mirror of kernels/addon.cc. Offsets and sizes are bytes; buffers and plans are handles of one device. */
export interface NativeDevice {
  /** Zero-filled memory; of the device unless told. */
  alloc(bytes: number, place?: Place): number
  free(buffer: number): void
  /** What is reserved now, and how many commands stand in a GPU's graphs. */
  reserved(): { readonly deviceBytes: number; readonly hostBytes: number; readonly graphCommands: number }
  write(buffer: number, offset: number, data: NodeJS.TypedArray): void
  read(buffer: number, offset: number, bytes: number): ArrayBuffer
  /** A copy in the order of the commands: resolves when what was started before it is done. */
  readLater(buffer: number, offset: number, bytes: number): Promise<ArrayBuffer>
  /** Copies tensors from files; resolves to the count of non-finite elements of each part. */
  load(parts: readonly LoadPart[]): Promise<Float64Array>
  /** The same for a tensor that is quantised, in the file or on the way in; resolves to the count of values that are not finite. */
  loadQuantised(part: QuantisedPart, threads: number): Promise<number>
  /** Uniform numbers in [low, high), a pure function of (seed, stream, index). */
  fillUniform(
    buffer: number,
    offset: number,
    elements: number,
    dtype: number,
    low: number,
    high: number,
    seed: number,
    stream: number,
  ): Promise<void>
  createPlan(tensors: Float64Array, commands: Int32Array, floats: Float64Array, buffers: Int32Array): number
  freePlan(plan: number): void
  /**
   * Runs commands [first, last) on the given rows: tokens, labelled rows and sequences with padding, then without. A GPU may still
   * be at work when the promise resolves; `read` and `synchronise` wait for it.
   */
  run(plan: number, dims: Int32Array, first: number, last: number, profile: boolean): Promise<RunResult>
  /** Makes the scratch that commands share at least this large; a processor sizes its own. */
  reserveScratch(bytes: number): void
  /** Resolves when everything that was started is done. */
  synchronise(): Promise<void>
  /** Ends the run in progress between two commands; later runs end at once until `clearStop`. */
  requestStop(): void
  clearStop(): void
  dispose(): void
}

export interface LoadPart {
  readonly path: string
  readonly fileOffset: number
  readonly elements: number
  readonly source: number
  readonly target: number
  readonly buffer: number
  readonly offset: number
}

/** Mirrors kernels/core/device.h and kernels/cpu/loadQuantised.h; offsets in bytes. */
export type QuantisedPart = LoadPart &
  (
    | {
        readonly kind: 'pack'
        readonly fp4: boolean
        readonly nested: boolean
        readonly groupShift: number
        readonly codesAt: number
        readonly absmaxAt: number
        readonly nestedAt: number
      }
    | { readonly kind: 'packRows'; readonly cols: number; readonly numbersAt: number; readonly scalesAt: number }
    | {
        readonly kind: 'unpack'
        readonly rounding: number
        readonly blockSize: number
        readonly code: Float32Array
        readonly absmax: Float32Array
      }
    | {
        readonly kind: 'scaled'
        readonly fp8: boolean
        readonly cols: number
        readonly blockRows: number
        readonly blockCols: number
        readonly divisor: number
        readonly scales: Float32Array
      }
  )

export interface RunResult {
  readonly executed: number
  readonly stopped: boolean
  /** Seconds of each command when profiling, else empty. */
  readonly seconds: Float64Array
}

export interface NativeDescription {
  readonly commands: readonly string[]
  readonly cpu: {
    readonly avx2: boolean
    readonly avx512: boolean
    readonly avx512bf16: boolean
    readonly amx: boolean
    readonly float32Kernel: string
    readonly bfloat16Kernel: string
  }
  /** Absent in a build without CUDA. */
  readonly cuda?: {
    readonly gpus: readonly NativeGpu[]
    /** Why there are none: one sentence with the way out. */
    readonly problem: string
    /** CUDA versions that the driver supports (0: no driver) and that the addon was built with: 13000 is 13.0. */
    readonly driver: number
    readonly runtime: number
  }
}

export interface NativeGpu {
  readonly index: number
  readonly name: string
  /** 90 is compute capability 9.0. */
  readonly capability: number
  readonly multiprocessors: number
  readonly totalBytes: number
}

/** A GPU at this moment, as its driver's management library tells. */
export interface NativeGpuStatus {
  readonly usedBytes: number
  readonly totalBytes: number
  /** Of this process alone. */
  readonly processBytes?: number
  /** Other processes that compute on it, as far as they are told: not those outside of a container. */
  readonly others: readonly { readonly pid: number; readonly bytes: number }[]
  /** 0 … 1 */
  readonly utilisation?: number
  /** °C */
  readonly temperature?: number
  /** W */
  readonly power?: number
}

interface NativeModule {
  /** `number`: threads of the processor, or which GPU. */
  readonly Device: new (kind: 'cpu' | 'cuda', number: number) => NativeDevice
  describe(): NativeDescription
  gpuStatus(index: number): NativeGpuStatus | undefined
  /** Where cuBLASLt was found, or why it is not used; undefined in a build without CUDA. Opens it, which takes a moment. */
  cublasLt(): { readonly path?: string; readonly version: number; readonly problem: string } | undefined
  /** Tells what was timed on a GPU before: records of `takeGemmChoices`, one after the other. */
  adoptGemmChoices(index: number, records: Int32Array): void
  /** What was timed on a GPU since the last call: records of 15 numbers (kernels/cuda/gemmChoices.h). */
  takeGemmChoices(index: number): Int32Array
}

let loaded: NativeModule | undefined

/** The file that is loaded. */
export function addonPath(): string {
  const chosen = process.env.UNSLOTH_ADDON
  const candidates =
    chosen !== undefined ? [chosen] : ['cuda', 'cpu'].map((preset) => join(projectRoot(), 'build', preset, 'kernels.node'))
  const path = candidates.find((candidate) => existsSync(candidate))
  if (path === undefined)
    throw new UnslothError('NATIVE', `The compute addon was not found at ${candidates.join(' or ')}.`, {
      hint: 'Run `npm run build` in the project folder.',
    })
  return path
}

/** The addon, loaded once. Fails when it was built from another command list than this program. */
export function native(): NativeModule {
  if (loaded !== undefined) return loaded
  const path = addonPath()
  let module: NativeModule
  try {
    module = createRequire(import.meta.url)(path) as NativeModule
  } catch (cause) {
    throw new UnslothError('NATIVE', `The compute addon ${path} does not load: ${(cause as Error).message}`, {
      hint: 'Run `npm run build` again on this machine.',
      cause,
    })
  }
  const theirs = module.describe().commands
  if (theirs.join() !== commandNames.join())
    throw new UnslothError('NATIVE', `The compute addon ${path} was built from other sources.`, { hint: 'Run `npm run build`.' })
  loaded = module
  return module
}

/** Turns an error of the addon, which carries a code, into an UnslothError. */
export function fromNative(error: unknown, doing: string): UnslothError {
  if (error instanceof UnslothError) return error
  const { code, message } = error as { code?: string; message?: string }
  const known = errorCodes.find((candidate) => candidate === code)
  return new UnslothError(
    known ?? 'NATIVE',
    known === undefined || known === 'NATIVE' ? `${doing}: ${message ?? String(error)}` : (message ?? String(error)),
    { cause: error },
  )
}
