import type { MetricEventKind } from './metrics.ts'
import type { RunFailure, RunOutput, ShownState } from './runState.ts'

/**
 * What the extension host and the training panel say to each other. The host owns the data: on `ready` it answers with a
 * complete `hydrate`, afterwards it sends what has changed, at most four times a second and to visible panels only.
 */

// ---- what the panel shows, kept by the panel ----------------------------------------------------------------------

export const xAxes = ['step', 'epoch', 'tokens', 'time'] as const
/** What runs along the x axis. Time is the run's working time in seconds, without the breaks before a resume. */
export type XAxis = (typeof xAxes)[number]

export const clipModes = ['none', 'p99', 'p95'] as const
/** Upper end of the y axes: everything, or the 99th or 95th percentile of what is in view. */
export type ClipMode = (typeof clipModes)[number]

/** The largest weight of the moving average. */
export const maxSmoothing = 0.999

export interface PanelSettings {
  readonly xAxis: XAxis
  /** Weight of the moving average, 0 (none) to 0.999. */
  readonly smoothing: number
  readonly raw: boolean
  readonly logScale: boolean
  readonly clip: ClipMode
  readonly marks: boolean
  readonly tables: boolean
}

export const defaultSettings: PanelSettings = {
  xAxis: 'step',
  smoothing: 0.9,
  raw: true,
  logScale: false,
  clip: 'none',
  marks: true,
  tables: false,
}

export interface Range {
  readonly min: number
  readonly max: number
}

/** What of the series is on the screen. */
export interface Viewport {
  /** Values of the x axis; null: everything, following the run. */
  readonly range: Range | null
  /** Columns of pixels of the widest chart. */
  readonly width: number
}

/** What a panel leaves behind for the time after a window reload: which runs, and how they were looked at. Never data. */
export interface PanelState {
  readonly version: 1
  /** Absolute paths of run directories, in order. */
  readonly runs: readonly string[]
  /** Runs of `runs` that are not drawn. */
  readonly hidden: readonly string[]
  readonly settings: PanelSettings
  readonly range: Range | null
}

/** A kept state, with defaults for whatever is missing or damaged. */
export function readPanelState(value: unknown): PanelState {
  const fields = isObject(value) ? value : {}
  const given = isObject(fields.settings) ? fields.settings : {}
  const { smoothing } = given
  const settings: PanelSettings = {
    xAxis: oneOf(xAxes, given.xAxis, defaultSettings.xAxis),
    smoothing: isFinite(smoothing) ? Math.min(Math.max(smoothing, 0), maxSmoothing) : defaultSettings.smoothing,
    raw: flag(given.raw, defaultSettings.raw),
    logScale: flag(given.logScale, defaultSettings.logScale),
    clip: oneOf(clipModes, given.clip, defaultSettings.clip),
    marks: flag(given.marks, defaultSettings.marks),
    tables: flag(given.tables, defaultSettings.tables),
  }
  return { version: 1, runs: strings(fields.runs), hidden: strings(fields.hidden), settings, range: readRange(fields.range) }
}

/** A viewport as a message carries it, made safe. */
export function readViewport(value: unknown): Viewport {
  const fields = isObject(value) ? value : {}
  const width = isFinite(fields.width) ? Math.min(Math.max(Math.round(fields.width), 64), 16_384) : 1_024
  return { range: readRange(fields.range), width }
}

function readRange(value: unknown): Range | null {
  if (!isObject(value)) return null
  const { min, max } = value
  return isFinite(min) && isFinite(max) && max > min ? { min, max } : null
}

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null
const isFinite = (value: unknown): value is number => typeof value === 'number' && Number.isFinite(value)
const flag = (value: unknown, otherwise: boolean): boolean => (typeof value === 'boolean' ? value : otherwise)
const strings = (value: unknown): string[] =>
  Array.isArray(value) ? [...new Set(value.filter((item) => typeof item === 'string'))] : []
const oneOf = <T extends string>(values: readonly T[], value: unknown, otherwise: T): T =>
  values.find((known) => known === value) ?? otherwise

// ---- runs and their data ------------------------------------------------------------------------------------------

/** `missing`: the folder is gone or is not a run (any more). */
export type PanelRunState = ShownState | 'missing'

export interface GpuFigures {
  /** Percent. */
  readonly utilization: number | null
  /** In use by all processes. */
  readonly memoryBytes: number | null
  /** Degrees Celsius. */
  readonly temperature: number | null
  /** Watts. */
  readonly power: number | null
}

/** What the header says about a run: always complete, never a change. Times are milliseconds since 1970. */
export interface RunInfo {
  /** The run directory, absolute: names the run in every message. */
  readonly id: string
  readonly name: string
  readonly state: PanelRunState
  readonly detail: string | null
  /** A process works on the run or waits: it can be stopped. */
  readonly alive: boolean
  /** It can be started again from its newest checkpoint. */
  readonly resumable: boolean
  readonly step: number
  readonly totalSteps: number | null
  readonly epoch: number | null
  readonly loss: number | null
  readonly evalLoss: number | null
  readonly bestEvalLoss: number | null
  readonly tokensPerSecond: number | null
  readonly etaSeconds: number | null
  readonly startedAt: number | null
  readonly endedAt: number | null
  readonly updatedAt: number | null
  readonly attempt: number
  readonly error: RunFailure | null
  readonly warnings: readonly string[]
  readonly outputs: readonly RunOutput[]
  readonly device: string | null
  readonly model: string | null
  readonly dataset: string | null
  readonly method: string | null
  readonly plannedBytes: number | null
  readonly measuredBytes: number | null
  /** The GPU at the last step, as far as it tells; null where none computes. */
  readonly gpu: GpuFigures | null
  readonly checkpointStep: number | null
  /** Steps whose loss or gradient norm was not a finite number. */
  readonly nonFiniteSteps: number
  /** Rows of metrics that have been read; `loading` while the file is being read for the first time. */
  readonly rows: number
  readonly loading: boolean
  /** Lines of metrics that could not be understood. */
  readonly invalidLines: number
  /** Why the run's files cannot be read. */
  readonly problem: string | null
}

/** Something to mark on the x axis of a run. */
export interface Mark {
  readonly kind: MetricEventKind
  readonly step: number
  /** On the x axis that the panel has chosen. */
  readonly x: number
  readonly message?: string
}

/** The points of a table after the first `keep` points of what was sent before; 0 replaces everything. */
export interface TableDelta {
  readonly keep: number
  readonly x: Float64Array
  /** Values by metric key; NaN where there is none. */
  readonly columns: Readonly<Record<string, Float64Array>>
  /** Moving averages, by the key of what they smooth. */
  readonly smoothed: Readonly<Record<string, Float64Array>>
  /** Rows of one point pair; 1: every row is there. */
  readonly bucket: number
}

export interface RunDelta {
  readonly id: string
  /** Absent: unchanged. */
  readonly steps?: TableDelta
  readonly evals?: TableDelta
  /** All marks in view, when they have changed. */
  readonly marks?: readonly Mark[]
  /** The whole extent of the x axis; null while there is nothing. */
  readonly extent: Range | null
  /** Upper ends of the y axes by metric key, when outliers are clipped. */
  readonly ceilings: Readonly<Record<string, number>>
}

// ---- messages -----------------------------------------------------------------------------------------------------

export const panelActions = [
  'stopNow',
  'stopAndSave',
  'pause',
  'resume',
  'openRecipe',
  'openLog',
  'reveal',
  'generate',
  'merge',
  'compareRecipes',
] as const
/** What the buttons ask for; the host does it. `resume` continues a paused run, or starts a lost one from its checkpoint. */
export type PanelAction = (typeof panelActions)[number]

/** Everything: replaces what the panel had. */
export interface HydrateMessage {
  readonly type: 'hydrate'
  readonly strings: Readonly<Record<string, string>>
  /** The host's clock. */
  readonly now: number
  readonly runs: readonly RunInfo[]
  readonly data: readonly RunDelta[]
}

/** What has changed since the last message. */
export interface UpdateMessage {
  readonly type: 'update'
  /** The number of the view that the data belong to; 0 until the panel has asked for one. */
  readonly view: number
  readonly now: number
  /** All runs, when something about one of them has changed. */
  readonly runs?: readonly RunInfo[]
  readonly data: readonly RunDelta[]
}

export type ToWebview =
  | HydrateMessage
  | UpdateMessage
  /** The host's end of an action: the buttons come back. */
  | { readonly type: 'acted'; readonly id: string; readonly action: PanelAction; readonly error?: string }

export type FromWebview =
  /** The page has started. */
  | { readonly type: 'ready'; readonly state: PanelState; readonly viewport: Viewport }
  /** Another part or another kind of view is asked for; `view` counts up. */
  | { readonly type: 'view'; readonly view: number; readonly settings: PanelSettings; readonly viewport: Viewport }
  | { readonly type: 'action'; readonly action: PanelAction; readonly id: string }
  /** Asks the user for further runs to lay over. */
  | { readonly type: 'addRuns' }
  | { readonly type: 'removeRun'; readonly id: string }
  | { readonly type: 'exportCsv'; readonly ids: readonly string[] }
  | { readonly type: 'exportPng'; readonly png: Uint8Array }
  /** An error of the page, for the log. */
  | { readonly type: 'failed'; readonly message: string }
