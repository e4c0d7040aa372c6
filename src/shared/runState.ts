import * as z from 'zod'
import { UnslothError } from './errors.ts'

/** What a run is doing. Stands in status.json; `interrupted` is never written, readers derive it from the heartbeat. */
export const runStates = [
  'queued', // waiting for its device, or not started yet
  'preparing', // recipe, data, tokens, plan
  'loading', // weights
  'training',
  'evaluating',
  'saving', // checkpoint, adapter, merged model
  'paused', // checkpoint written, device free
  'finished',
  'failed',
  'stopped', // by the user
] as const
export type RunState = (typeof runStates)[number]
export type ShownState = RunState | 'interrupted'

const nextStates: Readonly<Record<RunState, readonly RunState[]>> = {
  queued: ['preparing', 'loading', 'failed', 'stopped'],
  preparing: ['queued', 'loading', 'failed', 'stopped'],
  loading: ['queued', 'preparing', 'training', 'evaluating', 'saving', 'failed', 'stopped'],
  training: ['evaluating', 'saving', 'paused', 'finished', 'failed', 'stopped'],
  evaluating: ['training', 'saving', 'paused', 'finished', 'failed', 'stopped'],
  saving: ['training', 'evaluating', 'paused', 'finished', 'failed', 'stopped'],
  paused: ['queued', 'preparing', 'loading', 'training', 'saving', 'failed', 'stopped'],
  finished: [],
  failed: [],
  stopped: [],
}

/** Whether a living run may go from one state to the other. Staying in a state (with another detail) is allowed. */
export function canTransition(from: RunState, to: RunState): boolean {
  return from === to ? !hasEnded(from) : nextStates[from].includes(to)
}

/** Throws for a transition that the state machine does not have. */
export function checkTransition(from: RunState, to: RunState): void {
  if (!canTransition(from, to)) throw new UnslothError('INTERNAL', `a run cannot go from ${from} to ${to}`)
}

/** Finished, failed or stopped: no process works on the run. */
export const hasEnded = (state: ShownState): boolean => state === 'finished' || state === 'failed' || state === 'stopped'

const whole = z.number().int().nonnegative()

export const runFailureSchema = z.object({
  /** An ErrorCode; newer engines may write codes that this one does not know. */
  code: z.string(),
  message: z.string(),
  hint: z.string().nullable().default(null),
  /** Name of the tensor that was non-finite, missing or of the wrong shape. */
  tensor: z.string().nullable().default(null),
  step: whole.nullable().default(null),
})
export type RunFailure = z.infer<typeof runFailureSchema>

export const runOutputSchema = z.object({
  /** What it is: `adapter`, `merged`, `tokenizer`, … */
  kind: z.string(),
  /** Relative to the run directory when inside it, else absolute. */
  path: z.string(),
})
export type RunOutput = z.infer<typeof runOutputSchema>

/** The content of status.json. Times are ISO 8601 in UTC. */
export const runStatusSchema = z.object({
  version: z.literal(1),
  name: z.string(),
  state: z.enum(runStates),
  /** One phrase about the phase: "tokenizing 1,100 rows", "waiting for cpu, 2nd in the queue". */
  detail: z.string().nullable(),
  /** Optimizer steps done. */
  step: whole,
  totalSteps: whole.nullable(),
  /** Fraction of epochs done. */
  epoch: z.number().nullable(),
  /** Training loss of the last logged step; null before the first one and when it is not finite. */
  loss: z.number().nullable(),
  evalLoss: z.number().nullable(),
  tokensPerSecond: z.number().nullable(),
  etaSeconds: z.number().nullable(),
  createdAt: z.string(),
  startedAt: z.string().nullable(),
  endedAt: z.string().nullable(),
  updatedAt: z.string(),
  /** How many processes have worked on this run: 1 for the first, 2 after one resume. */
  attempt: whole,
  error: runFailureSchema.nullable(),
  warnings: z.array(z.string()),
  outputs: z.array(runOutputSchema),
  /** `cpu`, `cuda:0`; null until it is chosen. */
  device: z.string().nullable(),
  /** Peak memory of the plan, in bytes. */
  plannedBytes: whole.nullable(),
  /** Model and data as the recipe names them: for lists of runs. */
  model: z.string().nullable(),
  dataset: z.string().nullable(),
  method: z.string().nullable(),
})
export type RunStatus = z.infer<typeof runStatusSchema>
/** What a writer may change together with the state. */
export type StatusPatch = Partial<Omit<RunStatus, 'version' | 'name' | 'state' | 'createdAt' | 'updatedAt' | 'attempt'>>

/** The status of a run that exists and has not been started. */
export function newStatus(name: string, now: Date, patch: StatusPatch = {}): RunStatus {
  return {
    version: 1,
    name,
    state: 'queued',
    detail: null,
    step: 0,
    totalSteps: null,
    epoch: null,
    loss: null,
    evalLoss: null,
    tokensPerSecond: null,
    etaSeconds: null,
    createdAt: now.toISOString(),
    startedAt: null,
    endedAt: null,
    updatedAt: now.toISOString(),
    attempt: 0,
    error: null,
    warnings: [],
    outputs: [],
    device: null,
    plannedBytes: null,
    model: null,
    dataset: null,
    method: null,
    ...patch,
  }
}

/** Any thrown value as the `error` of a status. */
export function failureOf(error: unknown, where: { readonly tensor?: string; readonly step?: number } = {}): RunFailure {
  return {
    code: error instanceof UnslothError ? error.code : 'INTERNAL',
    message: error instanceof Error ? error.message : String(error),
    hint: error instanceof UnslothError ? (error.hint ?? null) : null,
    tensor: where.tensor ?? null,
    step: where.step ?? null,
  }
}

/** A process, told apart from another one that later got the same pid. */
export const processIdentitySchema = z.object({
  host: z.string(),
  /** Names the running kernel and pid name space, where the system tells: equal strings mean that pids can be compared. */
  machine: z.string(),
  pid: z.number().int().positive(),
  /** As the system gives it; empty when it does not tell. */
  startTime: z.string(),
})
export type ProcessIdentity = z.infer<typeof processIdentitySchema>

/** The content of heartbeat.json. */
export const heartbeatSchema = processIdentitySchema.extend({
  version: z.literal(1),
  /** Time of the beat, ISO 8601. */
  at: z.string(),
})
export type Heartbeat = z.infer<typeof heartbeatSchema>

/** Milliseconds between two heartbeats. */
export const heartbeatInterval = 2_000
/** A process that cannot be looked up (another machine) counts as gone after this silence, in milliseconds. */
export const heartbeatStale = 30_000

/**
 * Whether the process behind a heartbeat works: `process` is what the system says of it (undefined: it cannot be asked,
 * as on another machine; then the age of the beat decides).
 */
export function isBeating(heartbeat: Heartbeat | undefined, process: boolean | undefined, now: number): boolean {
  if (heartbeat === undefined) return false
  return process ?? now - Date.parse(heartbeat.at) < heartbeatStale
}

/**
 * The state to show. A run whose process is gone before it ended is interrupted, except a paused one, which lost nothing,
 * and a queued one that has been created a moment ago and whose process is still starting.
 */
export function shownState(status: RunStatus, alive: boolean, now: number): ShownState {
  if (alive || hasEnded(status.state) || status.state === 'paused') return status.state
  const age = now - Date.parse(status.updatedAt)
  return status.state === 'queued' && status.attempt === 0 && age < heartbeatStale ? 'queued' : 'interrupted'
}

/** Whether "Resume" makes sense: no process works on the run, it is not finished, and there is a checkpoint to start from. */
export function canResume(shown: ShownState, alive: boolean, hasCheckpoint: boolean): boolean {
  return !alive && hasCheckpoint && shown !== 'finished' && shown !== 'queued'
}
