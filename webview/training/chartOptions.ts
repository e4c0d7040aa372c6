import type uPlot from 'uplot'
import type { ChartSurroundings } from './chart.ts'
import type { ChartSpec } from './chartSpecs.ts'
import type { Curve } from './curves.ts'
import { curveColour } from './curves.ts'
import { formatLogTicks, formatPosition, formatTicks } from './format.ts'
import { runDashes } from './theme.ts'
import { byteIncrements, logSplits, timeIncrements, wholeIncrements } from './ticks.ts'

export interface ChartOptionsInput {
  readonly spec: ChartSpec
  readonly curves: readonly Curve[]
  readonly shared: ChartSurroundings
  readonly size: { readonly width: number; readonly height: number }
  /** More than one run is drawn: colours tell runs apart. */
  readonly several: boolean
  readonly ceiling: () => number | undefined
  readonly onDraw: (plot: uPlot) => void
  readonly onCursor: (plot: uPlot) => void
}

/** Least pixels of a drag that zooms. */
const dragDistance = 5

/** The plotter's options for a chart, in the theme's colours. */
export function chartOptions(input: ChartOptionsInput): uPlot.Options {
  const { spec, shared, size, curves, onDraw, onCursor } = input
  const { settings, theme } = shared
  const log = settings.logScale && spec.log === true
  const line = { stroke: theme.grid, width: 1 }
  return {
    ...size,
    legend: { show: false },
    focus: { alpha: 1 },
    padding: [10, 22, 0, 0],
    scales: {
      x: { time: false, range: () => xRange(shared) },
      y: { distr: log ? 3 : 1, range: (_plot, min, max) => yRange(input, log, min, max) },
    },
    axes: [
      {
        stroke: theme.muted,
        font: theme.font,
        grid: line,
        ticks: { ...line, size: 4 },
        size: 28,
        gap: 4,
        space: 64,
        values: (_plot, splits) => splits.map((value) => formatPosition(value, settings.xAxis)),
        ...(settings.xAxis === 'time' ? { incrs: [...timeIncrements] } : {}),
        ...(settings.xAxis === 'step' || settings.xAxis === 'tokens' ? { incrs: [...wholeIncrements] } : {}),
      },
      {
        stroke: theme.muted,
        font: theme.font,
        grid: line,
        ticks: { ...line, size: 4 },
        size: 56,
        gap: 4,
        space: 32,
        values: (_plot, splits) => (log ? formatLogTicks(splits, spec.unit) : formatTicks(splits, spec.unit)),
        ...(spec.unit === 'bytes' ? { incrs: [...byteIncrements] } : {}),
        ...(log ? { splits: (_plot, _axis, min, max) => logSplits(min, max), filter: (_plot, splits) => splits } : {}),
      },
    ],
    series: [{}, ...curves.map((curve) => seriesOptions(curve, input))],
    cursor: {
      y: false,
      drag: { x: true, y: false, setScale: false, dist: dragDistance },
      points: { size: 7 },
      hover: { skip: [null, undefined], prox: 40 },
      // Positions are shared, drags are not: a zoom comes back through the panel.
      sync: {
        key: 'training',
        setSeries: false,
        scales: ['x', null],
        filters: { pub: (type) => type === 'mousemove' || type === 'mouseleave' },
      },
      bind: {
        dblclick: () => () => {
          shared.zoom(null)
          return null
        },
      },
    },
    hooks: {
      draw: [onDraw],
      setCursor: [onCursor],
      setSelect: [
        (plot) => {
          const { left, width } = plot.select
          if (width < dragDistance) return
          const range = { min: plot.posToVal(left, 'x'), max: plot.posToVal(left + width, 'x') }
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false)
          shared.zoom(range)
        },
      ],
    },
  }
}

function xRange({ range }: ChartSurroundings): [number, number] {
  if (range.max > range.min) return [range.min, range.max]
  // One point: it stands in the middle.
  const half = Math.max(1, Math.abs(range.min) * 0.01)
  return [range.min - half, range.max + half]
}

function yRange(
  { spec, ceiling }: ChartOptionsInput,
  log: boolean,
  dataMin: number | null,
  dataMax: number | null,
): [number, number] {
  if (dataMin === null || dataMax === null) return log ? [0.1, 1] : [0, spec.maximum ?? 1]
  const limit = ceiling()
  const high = limit !== undefined && limit > dataMin ? Math.min(dataMax, limit) : dataMax
  if (log) {
    const room = Math.max((high / dataMin) ** 0.05, 1.02)
    return [dataMin / room, high * room]
  }
  const low = spec.fromZero === true ? Math.min(0, dataMin) : dataMin
  const room = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1
  const max = spec.maximum === undefined ? high + room : Math.max(spec.maximum, high)
  return [spec.fromZero === true && dataMin >= 0 ? 0 : dataMin >= 0 ? Math.max(0, low - room) : low - room, max]
}

function seriesOptions(curve: Curve, { shared, several, spec }: ChartOptionsInput): uPlot.Series {
  const { theme } = shared
  const { role, place } = curve
  const colour = curveColour(curve, spec, several)
  const stroke = colour === 'evaluation' ? theme.evaluation : theme.runs[colour % theme.runs.length]!
  const faint = role === 'raw'
  const ownDash = several && !faint ? [...runDashes[place % runDashes.length]!] : []
  const dash = role === 'planned' ? [4, 4] : several && role === 'points' ? [2, 4] : ownDash
  return {
    stroke,
    dash,
    spanGaps: true,
    alpha: faint ? (theme.highContrast ? 0.5 : 0.3) : 1,
    width: faint || role === 'planned' ? 1 : theme.highContrast ? 2.5 : 1.75,
    points: { show: (plot, index) => pointsShown(plot, index, role), size: role === 'points' ? 6 : 4, fill: stroke, stroke },
  }
}

/** Evaluations are points while there is room for them; of the other curves, only a single value needs one to be seen. */
function pointsShown(plot: uPlot, index: number, role: Curve['role']): boolean {
  if (role === 'planned') return false
  const values = plot.data[index]!
  let count = 0
  const most = role === 'points' ? plot.bbox.width / devicePixelRatio / 12 : 1
  for (let i = 0; i < values.length && count <= most; i++) if (values[i] !== null && values[i] !== undefined) count++
  return count <= most
}
