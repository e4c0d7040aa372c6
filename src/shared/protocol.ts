import type { RunState, RunStatus } from './runState.ts'

/**
 * Everything that processes say to each other, as plain descriptors: the engine and its clients wrap the same ones
 * (engine/rpc/connection.ts), so a method, its parameters and its result cannot drift apart.
 */

/** A question with an answer. The types stand in a property that never exists. */
export interface RequestDescriptor<P, R> {
  readonly method: string
  readonly types?: (params: P) => R
}
/** A message without an answer. */
export interface NotificationDescriptor<P> {
  readonly method: string
  readonly types?: (params: P) => void
}
export type ParamsOf<D> = D extends { readonly types?: (params: infer P) => unknown } ? P : never
export type ResultOf<D> = D extends RequestDescriptor<never, infer R> ? R : never

const request = <P, R>(method: string): RequestDescriptor<P, R> => ({ method })
const notification = <P>(method: string): NotificationDescriptor<P> => ({ method })

/** Raised when a message changes in a way that an older peer would misread. */
export const protocolVersion = 1

/** What a failed answer carries besides its message. */
export interface ErrorData {
  /** An ErrorCode. */
  readonly code: string
  readonly hint?: string
}

// ---- engine serve -------------------------------------------------------------------------------------------------

export interface InitializeParams {
  readonly protocolVersion: number
  readonly client: { readonly name: string; readonly version: string }
}
export interface InitializeResult {
  readonly protocolVersion: number
  readonly engineVersion: string
  readonly pid: number
  readonly platform: string
  readonly arch: string
  /** Methods that this engine answers. */
  readonly methods: readonly string[]
}

/** A problem at a place of the recipe's text. Lines and columns count from 1, in UTF-16 units; the end is exclusive. */
export interface RecipeDiagnostic {
  readonly severity: 'error' | 'warning' | 'info'
  readonly code: string
  readonly message: string
  /** The full key, as `training.learning_rate`. */
  readonly key?: string
  readonly line?: number
  readonly column?: number
  readonly endLine?: number
  readonly endColumn?: number
  /** What to write instead. */
  readonly suggestion?: string
}

export interface MemoryPart {
  /** "weights", "LoRA adapters", "optimizer", "activations", … */
  readonly name: string
  readonly bytes: number
  /** In memory of the system beside a GPU; not counted in its total. */
  readonly place?: 'host'
}

export interface PlanParams {
  /** The recipe's text as it stands in the editor. */
  readonly recipe: string
  /** Its file, for messages and relative paths. */
  readonly path?: string
  /** Dotted keys that replace those of the text. */
  readonly overrides?: Readonly<Record<string, unknown>>
}
export interface PlanSummary {
  readonly model: {
    readonly name: string
    readonly architecture: string
    readonly layers: number
    readonly hiddenSize: number
    readonly contextLength: number
    readonly parameters: number
    readonly trainableParameters: number
  }
  readonly device: string
  /** The total is of the device. */
  readonly memory: { readonly parts: readonly MemoryPart[]; readonly totalBytes: number; readonly availableBytes?: number }
  readonly steps: {
    readonly total: number
    readonly epochs: number
    readonly samples: number
    /** Samples of one optimizer step. */
    readonly effectiveBatch: number
    readonly tokensPerStep?: number
  }
  /** "patched 32 layers: 32 fused QKV, …", and why a group is not fused. */
  readonly patches: readonly string[]
}
export interface PlanResult {
  readonly diagnostics: readonly RecipeDiagnostic[]
  /** The recipe with every default written out; absent when it has errors. */
  readonly resolved?: string
  /** Absent when the recipe has errors. */
  readonly summary?: PlanSummary
}

export interface InspectParams {
  /** A safetensors file, or the folder of a model or adapter. */
  readonly path: string
  /** The most tensors to list. */
  readonly limit?: number
}
export interface TensorEntry {
  readonly name: string
  readonly dtype: string
  readonly shape: readonly number[]
  readonly bytes: number
  readonly file?: string
}
export interface InspectResult {
  readonly kind: 'safetensors' | 'model' | 'adapter'
  readonly path: string
  readonly bytes: number
  readonly parameters: number
  readonly tensorCount: number
  readonly tensors: readonly TensorEntry[]
  readonly metadata: Readonly<Record<string, string>>
  /** For folders: architecture, context length, vocabulary, rank, … in the order to show them. */
  readonly facts: readonly { readonly label: string; readonly value: string }[]
}

export interface ChatMessage {
  readonly role: string
  readonly content: string
}
export interface SamplingOptions {
  readonly maxNewTokens?: number
  /** 0 is greedy. */
  readonly temperature?: number
  readonly topK?: number
  readonly topP?: number
  readonly minP?: number
  readonly repetitionPenalty?: number
  readonly stop?: readonly string[]
  readonly seed?: number
}
export interface GenerateParams {
  /** Chosen by the client: names the stream of token notifications. */
  readonly id: string
  /** Folder of the model. */
  readonly model: string
  /** Folder of an adapter; none: the base model. */
  readonly adapter?: string
  /** Also what the base model makes of the same prompt and seed, token by token beside the adapter's text. */
  readonly withBase?: boolean
  readonly device?: string
  /** One of the two. */
  readonly prompt?: string
  readonly messages?: readonly ChatMessage[]
  readonly sampling?: SamplingOptions
}
export interface GeneratedText {
  readonly text: string
  readonly promptTokens: number
  readonly newTokens: number
  readonly stopReason: 'end' | 'length' | 'stop' | 'cancelled'
  /** From the start of all texts of the request to the end of this one. */
  readonly seconds: number
}
export interface GenerateResult extends GeneratedText {
  /** Where it was asked for. */
  readonly base?: GeneratedText
}
/** A piece of the text, in order; the pieces joined are the result's text. */
export interface GeneratedPiece {
  readonly id: string
  readonly text: string
  readonly tokens: number
  /** It belongs to the base model's text. */
  readonly base?: boolean
}

export interface VerifyParams {
  readonly path: string
  readonly device?: string
  readonly skip?: readonly string[]
}
export interface VerifyRow {
  readonly quantity: string
  readonly relativeError: number | null
  readonly tolerance: number
  readonly passed: boolean
  readonly note?: string
}
export interface VerifyResult {
  readonly passed: boolean
  readonly rows: readonly VerifyRow[]
}

export interface DoctorCheck {
  readonly name: string
  readonly level: 'ok' | 'info' | 'warning' | 'error'
  readonly detail: string
  readonly hint?: string
}
export interface DoctorResult {
  readonly checks: readonly DoctorCheck[]
}

/** A device to compute on. */
export interface DeviceEntry {
  /** `cpu`, `cuda:0` */
  readonly id: string
  readonly label: string
  readonly totalBytes: number
  /** Absent where nobody tells. */
  readonly freeBytes?: number
  /** Of a GPU: what a process takes there beside what it asks for, where that was measured. */
  readonly overhead?: { readonly contextBytes: number; readonly graphNodeBytes: number }
}
export interface DevicesResult {
  /** The one that `auto` takes first. */
  readonly devices: readonly DeviceEntry[]
  /** Why no GPU is among them. */
  readonly noGpu?: string
}

/** One token of a sample. */
export interface PreviewToken {
  readonly id: number
  /** Empty for a token that holds only part of a character; its last token has it whole. */
  readonly text: string
  /** Whether the model learns to write it. */
  readonly trained: boolean
  readonly special: boolean
}
export interface PreviewSample {
  /** Counts from 1. */
  readonly number: number
  readonly file: string
  readonly line: number
  /** In tokens. */
  readonly length: number
  readonly trained: number
  readonly tokens: readonly PreviewToken[]
  /** What looks wrong with it, a sentence each: a doubled first token, an end that is not trained, a length at the limit. */
  readonly problems: readonly string[]
}
export const previewFilters = ['all', 'problems', 'full'] as const
/** Which samples are shown: all, those with problems, those that fill max_seq_length. */
export type PreviewFilter = (typeof previewFilters)[number]
export const previewOrders = ['file', 'longest', 'shortest', 'leastTrained'] as const
/** In which order: as in the file, by length, or by the share that is trained. */
export type PreviewOrder = (typeof previewOrders)[number]
/** A data set as the model sees it. Lengths are in tokens. */
export interface DataPreview {
  readonly format: string
  /** Why the data are taken for that format. */
  readonly reason: string
  /** Rows read, and how many of them did not become samples as they are. */
  readonly rows: Readonly<Record<'rows' | 'truncated' | 'split' | 'tooLong' | 'empty' | 'masked' | 'undesired' | 'bad', number>>
  readonly samples: number
  readonly tokens: number
  readonly trainedTokens: number
  readonly lengths: {
    readonly shortest: number
    readonly mean: number
    readonly p50: number
    readonly p95: number
    readonly p99: number
    readonly longest: number
    /** From–to, both included. */
    readonly histogram: readonly { readonly from: number; readonly to: number; readonly samples: number }[]
  }
  /** With `training.packing`: rows of `rowTokens` tokens, and the share of them that is filled. */
  readonly packing: { readonly rows: number; readonly rowTokens: number; readonly efficiency: number }
  readonly warnings: readonly string[]
  readonly shown: readonly PreviewSample[]
}
export interface PreviewParams extends PlanParams {
  /** The first sample to show, from 0, and how many. */
  readonly from?: number
  readonly count?: number
  /** Rows to read at most, so that a large file opens at once; the numbers are about those. Default 2000. */
  readonly rows?: number
  /** The first row to read, from 0: the window moves through a large file. */
  readonly firstRow?: number
  /** Only samples whose text holds this. */
  readonly search?: string
  readonly filter?: PreviewFilter
  readonly order?: PreviewOrder
}
export interface PreviewResult {
  readonly diagnostics: readonly RecipeDiagnostic[]
  /** Absent when the recipe or the data have errors. */
  readonly preview?: DataPreview
  /** Samples that search and filter leave. */
  readonly matching?: number
  /** Whether there may be rows behind those that were read. */
  readonly more?: boolean
}

/** What a client asks of `engine serve`. Every request can be cancelled. */
export const engineRequests = {
  initialize: request<InitializeParams, InitializeResult>('initialize'),
  plan: request<PlanParams, PlanResult>('engine/plan'),
  preview: request<PreviewParams, PreviewResult>('engine/preview'),
  inspect: request<InspectParams, InspectResult>('engine/inspect'),
  generate: request<GenerateParams, GenerateResult>('engine/generate'),
  verify: request<VerifyParams, VerifyResult>('engine/verify'),
  doctor: request<Record<string, never>, DoctorResult>('engine/doctor'),
  devices: request<Record<string, never>, DevicesResult>('engine/devices'),
} as const
export type EngineRequests = typeof engineRequests

/** What `engine serve` tells its client unasked. */
export const engineNotifications = {
  generated: notification<GeneratedPiece>('engine/generated'),
  progress: notification<{ readonly message: string; readonly fraction?: number }>('engine/progress'),
} as const

// ---- the control socket of a run ----------------------------------------------------------------------------------

export interface RunControlResult {
  /** The state after the request was taken up; metrics and status stand in the run directory. */
  readonly state: RunState
  readonly step: number
}

/** What any process may ask of a living run. */
export const runRequests = {
  /** Stops within a second; with `save`, after a checkpoint (and the outputs that the recipe asks for) have been written. */
  stop: request<{ readonly save: boolean }, RunControlResult>('run/stop'),
  /** Writes a checkpoint and frees the device; the process waits. */
  pause: request<Record<string, never>, RunControlResult>('run/pause'),
  resume: request<Record<string, never>, RunControlResult>('run/resume'),
  status: request<Record<string, never>, RunStatus>('run/status'),
} as const
export type RunRequests = typeof runRequests
