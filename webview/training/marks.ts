import type uPlot from 'uplot'
import type { Mark } from '#shared/panelProtocol.ts'
import type { PanelStrings } from '#shared/panelStrings.ts'
import type { Theme } from './theme.ts'

export interface PlacedMark {
  readonly mark: Mark
  /** Place of its run: its colour. */
  readonly place: number
}

/** Size of a mark in pixels of the page. */
const size = 5
/** How near the crosshair must come to a mark for its name to be shown. */
const reach = 6

/**
 * Marks along the x axis: a checkpoint is a diamond at the bottom, a step that was not finite a triangle at the top with a
 * line; resumes, pauses and ends are dashed lines. The shapes differ, not only the colours.
 */
export function drawMarks(plot: uPlot, marks: readonly PlacedMark[], theme: Theme, several: boolean): void {
  const { ctx, bbox } = plot
  const ratio = devicePixelRatio
  ctx.save()
  ctx.beginPath()
  ctx.rect(bbox.left, bbox.top - size * ratio, bbox.width, bbox.height + 2 * size * ratio)
  ctx.clip()
  for (const { mark, place } of marks) {
    const x = plot.valToPos(mark.x, 'x', true)
    if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) continue
    const runColour = several ? theme.runs[place % theme.runs.length]! : theme.muted
    const colour = severity(mark) > 0 ? theme.error : runColour
    ctx.strokeStyle = ctx.fillStyle = colour
    if (mark.kind === 'checkpoint') diamond(ctx, x, bbox.top + bbox.height, size * ratio)
    else {
      ctx.globalAlpha = theme.highContrast ? 1 : 0.7
      ctx.lineWidth = ratio
      ctx.setLineDash(mark.kind === 'non_finite' ? [] : [3 * ratio, 3 * ratio])
      ctx.beginPath()
      ctx.moveTo(x, bbox.top)
      ctx.lineTo(x, bbox.top + bbox.height)
      ctx.stroke()
      ctx.globalAlpha = 1
      if (mark.kind === 'non_finite' || mark.kind === 'fail') triangle(ctx, x, bbox.top, size * ratio)
    }
  }
  ctx.restore()
}

function diamond(ctx: CanvasRenderingContext2D, x: number, y: number, radius: number): void {
  ctx.beginPath()
  ctx.moveTo(x, y - radius)
  ctx.lineTo(x + radius * 0.8, y)
  ctx.lineTo(x, y + radius)
  ctx.lineTo(x - radius * 0.8, y)
  ctx.closePath()
  ctx.fill()
}

function triangle(ctx: CanvasRenderingContext2D, x: number, y: number, radius: number): void {
  ctx.beginPath()
  ctx.moveTo(x - radius, y - radius / 2)
  ctx.lineTo(x + radius, y - radius / 2)
  ctx.lineTo(x, y + radius)
  ctx.closePath()
  ctx.fill()
}

/** The mark nearest to the crosshair, when it is near; of several at one place the worst. */
export function nearestMark(plot: uPlot, marks: readonly PlacedMark[], left: number): Mark | undefined {
  const near = marks
    .map(({ mark }) => ({ mark, distance: Math.abs(plot.valToPos(mark.x, 'x') - left) }))
    .filter(({ distance }) => distance <= reach)
    .sort((a, b) => severity(b.mark) - severity(a.mark) || a.distance - b.distance)
  return near[0]?.mark
}

const severity = ({ kind }: Mark): number => (kind === 'fail' ? 2 : kind === 'non_finite' ? 1 : 0)

/** What a mark says. */
export function markLabel(mark: Mark, strings: PanelStrings): string {
  const names: Partial<Record<Mark['kind'], string>> = {
    checkpoint: strings.markCheckpoint,
    non_finite: strings.markNonFinite,
    resume: strings.markResume,
    pause: strings.markPause,
    stop: strings.markStop,
    fail: strings.markFail,
  }
  const name = names[mark.kind] ?? mark.kind
  return mark.message === undefined ? name : `${name}: ${mark.message}`
}
