import { formatLoss, perplexity } from '#shared/metrics.ts'
import type { GpuFigures, PanelAction, PanelRunState, RunInfo } from '#shared/panelProtocol.ts'
import type { PanelStrings } from '#shared/panelStrings.ts'
import { fill } from '#shared/panelStrings.ts'
import { formatBytes, formatCompact, formatCount, formatDuration } from '#shared/units.ts'

/** The codicon of a state. */
export const stateIcons: Readonly<Record<PanelRunState, string>> = {
  queued: 'clock',
  preparing: 'loading',
  loading: 'loading',
  training: 'loading',
  evaluating: 'loading',
  saving: 'loading',
  paused: 'debug-pause',
  finished: 'pass',
  failed: 'error',
  stopped: 'debug-stop',
  interrupted: 'warning',
  missing: 'question',
}

export const isBusy = (state: PanelRunState): boolean => stateIcons[state] === 'loading'

/** Seconds the run has taken, by the host's clock. */
export function elapsedSeconds(info: RunInfo, now: number): number | null {
  if (info.startedAt === null) return null
  const end = info.alive ? now : (info.endedAt ?? info.updatedAt ?? now)
  return Math.max(0, (end - info.startedAt) / 1000)
}

/** The loss as the header shows it. */
export const lossText = (info: RunInfo, strings: PanelStrings): string =>
  info.loss !== null ? formatLoss(info.loss) : info.rows > 0 && info.nonFiniteSteps > 0 ? strings.notFinite : '–'

export interface Fact {
  readonly key: string
  readonly label: string
  readonly value: string
  readonly title?: string
}

/** The figures beside the loss: only those that are known. */
export function factsOfRun(info: RunInfo, strings: PanelStrings, now: number): Fact[] {
  const facts: Fact[] = []
  const add = (key: string, label: string, value: string | null, title?: string): void => {
    if (value !== null) facts.push({ key, label, value, ...(title === undefined ? {} : { title }) })
  }
  const total = info.totalSteps
  const step = formatCount(info.step)
  add('step', strings.step, total !== null ? fill(strings.stepOf, step, formatCount(total)) : info.step > 0 ? step : null)
  add('epoch', strings.epoch, info.epoch === null ? null : info.epoch.toFixed(2))
  const { etaSeconds } = info
  if (info.alive && info.state !== 'paused') add('eta', strings.eta, etaSeconds === null ? null : formatDuration(etaSeconds))
  const elapsed = elapsedSeconds(info, now)
  add(
    'elapsed',
    info.alive ? strings.elapsed : strings.took,
    elapsed === null ? null : formatDuration(Math.max(1, Math.round(elapsed))),
  )
  add(
    'evalLoss',
    strings.evalLoss,
    info.evalLoss === null ? null : formatLoss(info.evalLoss),
    info.evalLoss === null || info.bestEvalLoss === null
      ? undefined
      : `${fill(strings.perplexity, formatLoss(perplexity(info.evalLoss)))}, ${fill(strings.best, formatLoss(info.bestEvalLoss))}`,
  )
  const { tokensPerSecond: rate } = info
  add('speed', strings.speed, rate === null ? null : fill(strings.tokensPerSecond, formatCompact(rate)))
  const { measuredBytes: measured, plannedBytes: planned } = info
  add(
    'memory',
    strings.memory,
    measured === null
      ? planned === null
        ? null
        : `${formatBytes(planned)} ${strings.planned}`
      : planned === null
        ? formatBytes(measured)
        : fill(strings.ofPlanned, formatBytes(measured), formatBytes(planned)),
  )
  add('device', strings.device, info.device)
  if (info.gpu !== null) add('gpu', strings.gpu, gpuText(info.gpu))
  return facts
}

/** `87 % · 41.2 GB · 64 °C · 312 W`, as far as known. */
function gpuText({ utilization, memoryBytes, temperature, power }: GpuFigures): string {
  return [
    utilization === null ? null : `${Math.round(utilization)} %`,
    memoryBytes === null ? null : formatBytes(memoryBytes),
    temperature === null ? null : `${Math.round(temperature)} °C`,
    power === null ? null : `${Math.round(power)} W`,
  ]
    .filter((part) => part !== null)
    .join(' · ')
}

export interface ActionButton {
  readonly action: PanelAction
  readonly label: string
  readonly icon: string
  readonly primary?: boolean
}

const checkpointText = ({ checkpointStep }: RunInfo): string | undefined =>
  checkpointStep === null ? undefined : formatCount(checkpointStep)

/** What can be done with a run now. */
export function actionsOf(info: RunInfo, strings: PanelStrings): ActionButton[] {
  const pause: ActionButton = { action: 'pause', label: strings.pause, icon: 'debug-pause' }
  const stopAndSave: ActionButton = { action: 'stopAndSave', label: strings.stopAndSave, icon: 'save' }
  const stopNow: ActionButton = { action: 'stopNow', label: strings.stopNow, icon: 'debug-stop' }
  const checkpoint = checkpointText(info)
  const resume: ActionButton = {
    action: 'resume',
    icon: 'debug-continue',
    primary: true,
    label: checkpoint === undefined || info.alive ? strings.resume : fill(strings.resumeFrom, checkpoint),
  }
  if (info.alive) {
    switch (info.state) {
      case 'training':
      case 'evaluating':
      case 'saving':
        return [pause, stopAndSave, stopNow]
      case 'paused':
        return [resume, stopAndSave, stopNow]
      case 'queued':
      case 'preparing':
      case 'loading':
        return [stopNow]
      default:
        return []
    }
  }
  if (info.resumable) return [resume]
  if (info.state !== 'finished') return []
  const hasAdapter = info.outputs.some(({ kind }) => kind === 'adapter')
  return [
    { action: 'generate', label: strings.generate, icon: 'comment-discussion', primary: true },
    ...(hasAdapter ? [{ action: 'merge', label: strings.merge, icon: 'git-merge' } as const] : []),
  ]
}

/** Something that the reader must know about a run. */
export interface Notice {
  readonly level: 'error' | 'warning' | 'info'
  readonly text: string
  readonly hint?: string
}

/** The most warnings that are shown one by one. */
const maxWarnings = 5

export function noticesOf(info: RunInfo, lastNonFinite: number | undefined, strings: PanelStrings): Notice[] {
  const notices: Notice[] = []
  const add = (level: Notice['level'], text: string, hint?: string | null): void => {
    notices.push({ level, text, ...(hint === undefined || hint === null ? {} : { hint }) })
  }
  if (info.state === 'missing') add('warning', fill(strings.missingHint, info.id))
  else if (info.problem !== null) add('error', info.problem)
  if (info.state === 'interrupted') {
    const checkpoint = checkpointText(info)
    const hint = checkpoint === undefined ? strings.interruptedNoCheckpoint : fill(strings.interruptedResume, checkpoint)
    add('warning', strings.interruptedHint, hint)
  }
  const hasFailed = info.state === 'failed' || info.state === 'interrupted'
  if (info.error !== null && hasFailed) add('error', info.error.message, info.error.hint)
  const { nonFiniteSteps: count } = info
  const lastText = formatCount(lastNonFinite ?? info.step)
  if (count === 1) add('warning', fill(strings.nonFiniteOne, lastText))
  else if (count > 0) add('warning', fill(strings.nonFiniteWarning, formatCount(count), lastText))
  for (const warning of info.warnings.slice(0, maxWarnings)) add('warning', warning)
  if (info.warnings.length > maxWarnings) add('warning', fill(strings.moreWarnings, info.warnings.length - maxWarnings))
  if (info.invalidLines > 0) add('info', fill(strings.invalidLines, formatCount(info.invalidLines)))
  return notices
}

/** One sentence about a run, for screen readers. */
export function announcement(info: RunInfo, strings: PanelStrings): string {
  const done = formatCount(info.step)
  const step = info.totalSteps === null ? done : fill(strings.announceOf, done, formatCount(info.totalSteps))
  const left = info.alive && info.etaSeconds !== null ? ` ${fill(strings.announceLeft, formatDuration(info.etaSeconds))}` : ''
  return fill(strings.announceStep, info.name, strings[info.state], step, lossText(info, strings)) + left
}
