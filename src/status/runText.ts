import { formatLoss } from '#shared/metrics.ts'
import type { ShownState } from '#shared/runState.ts'
import { formatCount, formatDuration } from '#shared/units.ts'
import type { RunView } from '../../engine/run/runReader.ts'

/** Codicons of the states, without `$( )`. */
export const stateIcons: Readonly<Record<ShownState, string>> = {
  queued: 'watch',
  preparing: 'loading~spin',
  loading: 'loading~spin',
  training: 'loading~spin',
  evaluating: 'loading~spin',
  saving: 'loading~spin',
  paused: 'debug-pause',
  finished: 'pass',
  failed: 'error',
  stopped: 'circle-slash',
  interrupted: 'warning',
}

/** `1,240/5,000 · loss 1.73 · 18 m`; before the first step, what the run is doing. */
export function progressText({ state, status }: RunView): string {
  const { step, totalSteps, loss, etaSeconds, detail } = status
  const working = state === 'training' || state === 'evaluating' || state === 'saving'
  if (!working && state !== 'paused') return detail === null ? state : `${state}: ${detail}`
  const parts = [totalSteps === null ? formatCount(step) : `${formatCount(step)}/${formatCount(totalSteps)}`]
  if (loss !== null) parts.push(`loss ${formatLoss(loss)}`)
  if (state === 'paused') parts.push('paused')
  else if (state !== 'training') parts.push(state)
  else if (etaSeconds !== null) parts.push(formatDuration(etaSeconds))
  return parts.join(' · ')
}

const bars = '▁▂▃▄▅▆▇█'

/** A curve in `width` characters: each is the mean of its share of the values, scaled between the smallest and largest mean. */
export function sparkline(values: ArrayLike<number>, width = 12): string {
  const means: number[] = []
  const finite = Array.from(values).filter((value) => Number.isFinite(value))
  const count = Math.min(width, finite.length)
  for (let at = 0; at < count; at++) {
    const share = finite.slice(Math.floor((at * finite.length) / count), Math.floor(((at + 1) * finite.length) / count))
    means.push(share.reduce((sum, value) => sum + value, 0) / share.length)
  }
  const low = Math.min(...means)
  const high = Math.max(...means)
  return means.map((mean) => bars[high === low ? 0 : Math.round(((mean - low) / (high - low)) * (bars.length - 1))]).join('')
}
