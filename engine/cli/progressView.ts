import { relative } from 'node:path'
import { formatCount, formatDuration } from '#shared/units.ts'
import { describeProgress } from '../hub/transferProgress.ts'
import type { RunEvents } from '../train/trainingRun.ts'

const barWidth = 24

/** The path as it is shortest to type from here. */
export function shownPath(path: string): string {
  const near = relative(process.cwd(), path)
  return near === '' ? '.' : near.startsWith('..') ? path : near
}

/**
 * Shows a run in a terminal: one line that is rewritten when the stream is a terminal, else a plain line for each step that is
 * to be logged. Warnings and outputs get lines of their own.
 */
export function progressView(stream: NodeJS.WriteStream, live = stream.isTTY): RunEvents & { end(): void } {
  let shown = 0
  const clear = () => {
    if (shown > 0) stream.write(`\r${' '.repeat(shown)}\r`)
    shown = 0
  }
  const line = (text: string) => {
    clear()
    stream.write(`${text}\n`)
  }
  const rewrite = (text: string) => {
    const cut = text.slice(0, Math.max(20, (stream.columns || 100) - 1))
    stream.write(`\r${cut.padEnd(shown)}`)
    shown = cut.length
  }
  let lastDownload = -Infinity
  return {
    onDownload(progress) {
      const whole = progress.filesDone === progress.files
      if (live && !whole) return rewrite(describeProgress(progress))
      // A file or a pipe gets a line from time to time.
      if (!whole && performance.now() - lastDownload < 5000) return
      lastDownload = performance.now()
      line(describeProgress(progress))
    },
    onPrepared(prepared) {
      for (const text of prepared.summaryLines) line(text)
    },
    onState(state, detail) {
      if (live && (state === 'training' || state === 'evaluating')) return
      if (state !== 'training' && state !== 'evaluating') line(detail === null ? state : `${state}: ${detail}`)
    },
    onStep(record, { totalSteps, etaSeconds, logged }) {
      const text = `loss ${record.loss.toFixed(4)}  ${formatCount(Math.round(record.tokens_per_second))} tok/s  ${formatDuration(etaSeconds)} left`
      const step = `step ${record.step}/${totalSteps}`
      if (live) {
        const full = Math.round((barWidth * record.step) / totalSteps)
        rewrite(`${'█'.repeat(full)}${'░'.repeat(barWidth - full)} ${step}  ${text}`)
        if (record.step === totalSteps) {
          stream.write('\n')
          shown = 0
        }
        return
      }
      if (logged) line(`${step}  epoch ${record.epoch.toFixed(2)}  ${text}`)
    },
    onEvaluation(step, loss) {
      line(`step ${step}: evaluation loss ${loss.toFixed(4)}, perplexity ${Math.exp(loss).toFixed(2)}`)
    },
    onWarning(message) {
      line(`warning: ${message}`)
    },
    onOutput(kind, path) {
      line(`saved ${kind}: ${shownPath(path)}`)
    },
    end: clear,
  }
}
