import { UnslothError } from '#shared/errors.ts'
import type { StepRecord } from '#shared/metrics.ts'
import { warmupSteps, evalInterval, schedulerCycles, type Recipe } from '#shared/recipe.ts'
import { hasEnded, type RunState } from '#shared/runState.ts'
import { cleanPartials } from '../io/atomicFile.ts'
import { describeProgress, type HubProgress } from '../hub/transferProgress.ts'
import { acquireDevice } from '../run/deviceQueue.ts'
import type { RunWriter } from '../run/runWriter.ts'
import { native } from '../native.ts'
import { chooseDevice, deviceName } from '../runtime/chooseDevice.ts'
import { GpuMeter } from '../runtime/gpuMeter.ts'
import { Runtime, type DeviceChoice } from '../runtime/runtime.ts'
import { restoreCheckpoint, writeCheckpoint } from './checkpoint.ts'
import { readSources, writeSources } from './hubSources.ts'
import { optimizerKinds } from './optimizerState.ts'
import { prepareRun, type PreparedRun } from './prepareRun.ts'
import { fillUntrainedRows } from './fillUntrainedRows.ts'
import type { RunControl } from './runControl.ts'
import { saveOutputs } from './saveOutputs.ts'
import { learningRate } from './schedule.ts'
import type { ParameterRates } from '../patch/parameters.ts'
import type { StepOutcome, Trainer } from './trainer.ts'

/** What a run tells while it works; everything also stands in the run directory. */
export interface RunEvents {
  onState?(state: RunState, detail: string | null): void
  /** While model and data are fetched from the Hub, a few times a second. */
  onDownload?(progress: HubProgress): void
  onPrepared?(prepared: PreparedRun): void
  onStep?(record: StepRecord, progress: StepProgress): void
  onEvaluation?(step: number, loss: number): void
  onWarning?(message: string): void
  onOutput?(kind: string, path: string): void
}

export interface StepProgress {
  readonly totalSteps: number
  readonly etaSeconds: number
  /** Whether the recipe wants a line for this step: every `logging_steps`, the first and the last. */
  readonly logged: boolean
}

type Ending = 'finished' | 'stopped' | 'paused'

/** A whole fine-tuning run on a locked run directory: from its frozen recipe to its outputs, resuming where a checkpoint stands. */
export class TrainingRun {
  private readonly writer: RunWriter
  private readonly recipe: Recipe
  private readonly control: RunControl
  private readonly events: RunEvents
  /** Bytes of this process before weights were loaded: what the plan does not count. */
  private residentBefore = 0
  /** Counts this process on its GPU; made before it takes memory there. */
  private meter: GpuMeter | undefined

  constructor(writer: RunWriter, recipe: Recipe, control: RunControl, events: RunEvents = {}) {
    this.writer = writer
    this.recipe = recipe
    this.control = control
    this.events = events
  }

  /** Runs to the end, through any number of pauses. Failures stand in the status before they are thrown. */
  async execute(): Promise<Ending> {
    try {
      await cleanPartials(this.writer.run.dir)
      for (;;) {
        const ending = await this.session()
        if (ending !== 'paused') return ending
        await this.control.whilePaused()
        // Stop-and-save goes through a session: its outputs are made from the checkpoint.
        if (this.control.request === 'stopNow') return this.end('stopped', 'stopped while paused')
      }
    } catch (error) {
      if (UnslothError.is(error, 'STOPPED')) return this.end('stopped', 'stopped by the user')
      if (this.writer.isOwner && !hasEnded(this.writer.status.state)) this.writer.fail(error, { step: this.writer.status.step })
      throw error
    }
  }

  private state(state: RunState, detail: string | null = null, patch: Parameters<RunWriter['setState']>[1] = {}): void {
    this.writer.setState(state, { detail, ...patch })
    this.writer.log(detail === null ? state : `${state}: ${detail}`)
    this.events.onState?.(state, detail)
  }

  private end(ending: 'finished' | 'stopped', detail: string | null): Ending {
    this.writer.appendEvent(ending === 'finished' ? 'finish' : 'stop')
    this.state(ending, detail)
    return ending
  }

  private downloading(progress: HubProgress): void {
    this.writer.progress({ detail: describeProgress(progress), etaSeconds: progress.etaSeconds ?? null })
    this.events.onDownload?.(progress)
  }

  private warn(message: string): void {
    this.writer.warn(message)
    this.events.onWarning?.(message)
  }

  /** From the device's queue to the end, or to a pause, which leaves a checkpoint and no memory behind. */
  private async session(): Promise<Ending> {
    const device = chooseDevice(this.recipe.training.device, this.recipe.training.threads)
    const place = deviceName(device)
    this.writer.begin('queued', { device: place })
    const abort = new AbortController()
    this.control.onStop = (request) => {
      if (request === 'stopNow' || this.writer.latestCheckpoint() === undefined) abort.abort()
    }
    const lease = await acquireDevice(place, this.writer.status.name, {
      signal: abort.signal,
      onWait: (ahead, owner) =>
        this.state('queued', owner === undefined ? `${ahead} runs are ahead` : `waiting for ${place}, used by ${owner.purpose}`),
    })
    let runtime: Runtime | undefined
    try {
      if (device.kind === 'cuda') this.meter ??= new GpuMeter(device.index)
      for (let attempt = 1; ; ++attempt) {
        const prepared = await this.prepare(device, abort.signal)
        try {
          runtime = new Runtime(prepared.model.device)
          this.control.onStop = (request) => {
            if (request === 'stopNow') runtime?.stop()
          }
          if (abort.signal.aborted) throw stopped()
          return await this.train(prepared, await this.load(prepared, runtime))
        } catch (error) {
          // Before the first step nothing is lost by beginning anew with what is free now.
          const again =
            attempt === 1 &&
            UnslothError.is(error, 'MEMORY') &&
            this.writer.status.state === 'loading' &&
            this.recipe.training.gradient_checkpointing === 'auto'
          if (!again) throw error
          runtime?.dispose()
          this.warn(`${error.message} The run is planned again with what is free now.`)
        }
      }
    } finally {
      this.control.onStop = undefined
      runtime?.dispose()
      lease.release()
    }
  }

  private async prepare(device: DeviceChoice, signal: AbortSignal): Promise<PreparedRun> {
    this.state('preparing')
    const prepared = await prepareRun(this.recipe, {
      signal,
      device,
      now: new Date(this.writer.status.createdAt),
      sources: readSources(this.writer.run.dir),
      onDownload: (progress) => this.downloading(progress),
    })
    this.writer.progress({ detail: null, etaSeconds: null })
    writeSources(this.writer.run.dir, prepared.sources)
    for (const warning of prepared.warnings) this.warn(warning)
    this.events.onPrepared?.(prepared)
    for (const line of prepared.summaryLines) this.writer.log(line)
    return prepared
  }

  /** Reads the weights and takes all memory that the plan names. */
  private async load(prepared: PreparedRun, runtime: Runtime): Promise<Trainer> {
    const { training } = this.recipe
    this.state('loading', null, { plannedBytes: prepared.plan.totalBytes, totalSteps: prepared.totalSteps })
    this.residentBefore = process.memoryUsage.rss()
    fillUntrainedRows(await prepared.model.load({ runtime, adapter: prepared.initAdapter }), prepared.untrained)
    return prepared.model.trainer(prepared.plan, {
      maxGradNorm: training.max_grad_norm,
      beta1: training.adam_beta1,
      beta2: training.adam_beta2,
      eps: training.adam_epsilon,
      weightDecay: training.weight_decay,
      kind: optimizerKinds[training.optim]!,
    })
  }

  private async train(prepared: PreparedRun, trainer: Trainer): Promise<Ending> {
    const { recipe } = this
    const { training } = recipe
    const progress = new Progress(await this.start(trainer, prepared), prepared)
    this.state('training')
    const every = evalInterval(recipe, prepared.totalSteps)
    const evaluates = (step: number) =>
      prepared.evaluation !== undefined && every > 0 && (step % every === 0 || step === prepared.totalSteps)
    const checkpoints = (step: number) =>
      training.save_steps > 0 && step % training.save_steps === 0 && step < prepared.totalSteps
    // A GPU has the next step already while the host waits for the last one, except where the state between them is needed.
    const ahead = prepared.model.device.kind === 'cuda' ? 1 : 0
    const started: Promise<StepOutcome>[] = []
    let since = performance.now()
    while (progress.step < prepared.totalSteps) {
      if (started.length === 0) {
        // Before the first step there is nothing to save.
        if (this.control.request === 'stopNow' || (this.control.request === 'stopAndSave' && progress.step === 0)) throw stopped()
        if (this.control.request === 'stopAndSave') return this.stopAndSave(trainer, prepared, progress)
        if (this.control.request === 'pause') {
          await this.checkpoint(trainer, progress)
          this.writer.appendEvent('pause')
          this.state('paused', `after step ${progress.step}`)
          return 'paused'
        }
      }
      const next = progress.step + started.length
      const settled = started.length === 0 || (this.control.request === undefined && !evaluates(next) && !checkpoints(next))
      if (next < prepared.totalSteps && settled && started.length <= ahead) {
        const { outcome } = await trainer.start(next, prepared.batches(next), (updates) =>
          this.rates(updates, prepared.totalSteps),
        )
        outcome.catch(() => undefined) // It is awaited below; until then nobody is told.
        started.push(outcome)
        if (started.length <= ahead) continue
      }
      const done = await started.shift()!
      progress.advance(done, (performance.now() - since) / 1000)
      since = performance.now()
      this.report(progress, done)
      if (evaluates(progress.step)) await this.evaluate(trainer, prepared, progress)
      if (checkpoints(progress.step)) await this.checkpoint(trainer, progress)
      if (started.length === 0) since = performance.now()
    }
    await this.save(prepared)
    return this.end('finished', null)
  }

  /** Puts back the newest checkpoint, if there is one. Returns the steps done. */
  private async start(trainer: Trainer, prepared: PreparedRun): Promise<number> {
    const checkpoint = this.writer.latestCheckpoint() ?? prepared.resumeFrom
    if (checkpoint !== undefined) {
      await restoreCheckpoint(trainer, checkpoint.path)
      this.writer.resumeFrom(checkpoint.step)
      return checkpoint.step
    }
    this.writer.resumeFrom(0)
    this.writer.appendEvent('start')
    return 0
  }

  /** Learning rates after so many updates; like transformers' schedulers, they do not move on with a step that was skipped. */
  private rates(updates: number, totalSteps: number): ParameterRates {
    const { training, lora } = this.recipe
    const share = learningRate(updates, scheduleOf(this.recipe, totalSteps))
    const rate = training.learning_rate * share
    return {
      default: rate,
      embedding: (training.embedding_learning_rate ?? training.learning_rate) * share,
      loraB: rate * (lora.loraplus_lr_ratio ?? 1),
    }
  }

  private report(progress: Progress, outcome: StepOutcome): void {
    const { totalSteps } = progress.prepared
    const { scaling } = outcome
    const record: StepRecord = {
      type: 'step',
      step: progress.step,
      epoch: progress.epoch,
      loss: outcome.loss,
      learning_rate: this.rates(outcome.updates, totalSteps).default,
      grad_norm: outcome.gradientNorm,
      num_tokens: progress.tokens,
      tokens_per_second: progress.tokensPerSecond,
      time: Date.now(),
      ...(scaling === undefined ? {} : { loss_scale: scaling.scale }),
      ...this.measured(progress.prepared.model.device),
    }
    if (scaling?.skipped === true)
      this.writer.log(
        `step ${progress.step} was skipped: its gradient is not finite in float16 at a loss scale of ${scaling.scale}, the next one is ${scaling.next}`,
      )
    this.writer.appendMetrics(record)
    const logged = progress.step % this.recipe.logging.logging_steps === 0 || progress.step === totalSteps || progress.step === 1
    const etaSeconds = progress.etaSeconds
    this.writer.progress({
      step: progress.step,
      epoch: progress.epoch,
      loss: outcome.loss,
      tokensPerSecond: progress.tokensPerSecond,
      etaSeconds,
    })
    this.events.onStep?.(record, { totalSteps, etaSeconds, logged })
  }

  /** Memory of the run on its device, and what the GPU's driver tells. */
  private measured(device: DeviceChoice): Partial<StepRecord> {
    if (device.kind === 'cpu') return { memory_bytes: Math.max(0, process.memoryUsage.rss() - this.residentBefore) }
    const status = native().gpuStatus(device.index)
    if (status === undefined) return {}
    const { usedBytes, utilisation, temperature, power } = status
    return {
      memory_bytes: this.meter?.bytes ?? usedBytes,
      gpu_memory_bytes: usedBytes,
      ...(utilisation === undefined ? {} : { gpu_utilization: 100 * utilisation }),
      ...(temperature === undefined ? {} : { gpu_temperature: temperature }),
      ...(power === undefined ? {} : { gpu_power: power }),
    }
  }

  private async evaluate(trainer: Trainer, prepared: PreparedRun, progress: Progress): Promise<void> {
    this.state('evaluating')
    const began = performance.now()
    const loss = await trainer.evaluate(prepared.evaluation!)
    if (!Number.isFinite(loss)) this.warn(`The evaluation loss after step ${progress.step} is ${loss}.`)
    this.writer.appendMetrics({
      type: 'eval',
      step: progress.step,
      epoch: progress.epoch,
      eval_loss: loss,
      eval_perplexity: Math.exp(loss),
      time: Date.now(),
      eval_runtime: (performance.now() - began) / 1000,
    })
    this.state('training', null, { evalLoss: loss })
    this.events.onEvaluation?.(progress.step, loss)
  }

  private async checkpoint(trainer: Trainer, progress: Progress): Promise<void> {
    const before = this.writer.status.state
    this.state('saving', `checkpoint of step ${progress.step}`)
    const draft = this.writer.beginCheckpoint(progress.step)
    try {
      await writeCheckpoint(trainer, draft.path)
      draft.commit({ epoch: progress.epoch, loss: progress.lastLoss })
    } catch (error) {
      draft.discard()
      throw error
    }
    const { save_total_limit: limit } = this.recipe.training
    if (limit !== null) this.writer.pruneCheckpoints(limit)
    this.writer.appendEvent('checkpoint')
    this.state(before)
  }

  private async stopAndSave(trainer: Trainer, prepared: PreparedRun, progress: Progress): Promise<Ending> {
    await this.checkpoint(trainer, progress)
    await this.save(prepared)
    return this.end('stopped', `after step ${progress.step}, saved`)
  }

  private async save(prepared: PreparedRun): Promise<void> {
    this.state('saving')
    await saveOutputs(prepared, this.recipe, this.writer.run.dir, {
      onOutput: (kind, path) => {
        this.writer.addOutput(kind, path)
        this.writer.appendEvent('output', { path: this.writer.run.relative(path), message: kind })
        this.events.onOutput?.(kind, path)
      },
      log: (message) => this.writer.log(message),
    })
  }
}

const stopped = () => new UnslothError('STOPPED', 'The run was stopped.')

const scheduleOf = (recipe: Recipe, totalSteps: number) => ({
  type: recipe.training.lr_scheduler_type,
  totalSteps,
  warmupSteps: warmupSteps(recipe, totalSteps),
  numCycles: schedulerCycles(recipe),
  power: recipe.training.power,
  rateEnd: recipe.training.lr_end / recipe.training.learning_rate,
})

/** Where a run stands, and how fast it goes. */
class Progress {
  step: number
  /** Since the beginning of the run, steps of earlier processes included. */
  tokens: number
  lastLoss = NaN
  readonly prepared: PreparedRun
  /** Seconds and tokens of the latest steps. */
  private readonly recent: { seconds: number; tokens: number }[] = []

  constructor(step: number, prepared: PreparedRun) {
    this.step = step
    this.tokens = prepared.tokensOf(step)
    this.prepared = prepared
  }

  advance(outcome: StepOutcome, seconds: number): void {
    ++this.step
    this.tokens += outcome.tokens
    this.lastLoss = outcome.loss
    this.recent.push({ seconds, tokens: outcome.tokens })
    if (this.recent.length > 20) this.recent.shift()
  }

  get epoch(): number {
    return this.prepared.epochOf(this.step)
  }

  private sum(key: 'seconds' | 'tokens'): number {
    return this.recent.reduce((sum, item) => sum + item[key], 0)
  }

  get tokensPerSecond(): number {
    return this.sum('tokens') / Math.max(1e-9, this.sum('seconds'))
  }

  get etaSeconds(): number {
    return (this.sum('seconds') / Math.max(1, this.recent.length)) * (this.prepared.totalSteps - this.step)
  }
}
