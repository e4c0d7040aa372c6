import type { PanelSettings } from '#shared/panelProtocol.ts'
import type { AlignedCurves, CurveTable } from './align.ts'
import { alignTables } from './align.ts'
import type { ChartSpec, CurveSpec } from './chartSpecs.ts'
import type { ShownRun } from './panelModel.ts'

/** A run with its place in the list of runs, by which it has its colour. */
export interface PlacedRun {
  readonly run: ShownRun
  readonly place: number
}

/** One line of a chart. */
export interface Curve {
  readonly spec: CurveSpec
  readonly run: ShownRun
  /** Place of the run in the list: its colour. */
  readonly place: number
  readonly role: 'raw' | 'smoothed' | 'line' | 'points' | 'planned'
}

export interface ChartData {
  readonly curves: readonly Curve[]
  readonly aligned: AlignedCurves
  /** Changes when curves come or go, not when they grow. */
  readonly structure: string
  /** Upper end of the y axis when outliers are clipped. */
  readonly ceiling: number | undefined
}

/** The lines of a chart, for the runs that are drawn. */
export function chartData(spec: ChartSpec, runs: readonly PlacedRun[], settings: PanelSettings): ChartData {
  const curves: Curve[] = []
  const tables: CurveTable[] = []
  let ceiling: number | undefined
  for (const { run, place } of runs) {
    for (const table of ['steps', 'evals'] as const) {
      const points = run[table]
      const values: Float64Array[] = []
      for (const curve of spec.curves) {
        if (curve.table !== table || curve.style === 'planned') continue
        const raw = points.columns[curve.key]
        if (raw === undefined || raw.length === 0) continue
        const { [curve.key]: smoothed } = curve.style === 'trend' ? points.smoothed : {}
        if (smoothed === undefined || settings.raw) {
          curves.push({
            spec: curve,
            run,
            place,
            role: smoothed !== undefined ? 'raw' : curve.style === 'points' ? 'points' : 'line',
          })
          values.push(raw)
        }
        if (smoothed !== undefined) {
          curves.push({ spec: curve, run, place, role: 'smoothed' })
          values.push(smoothed)
        }
        const limit = run.ceilings[curve.key]
        if (limit !== undefined) ceiling = Math.max(ceiling ?? -Infinity, limit)
      }
      if (values.length > 0) tables.push({ x: points.x, curves: values })
    }
    const planned = spec.curves.find(({ style }) => style === 'planned')
    const { plannedBytes } = run.info
    if (planned !== undefined && plannedBytes !== null && run.extent !== null) {
      curves.push({ spec: planned, run, place, role: 'planned' })
      tables.push({ x: Float64Array.of(run.extent.min, run.extent.max), curves: [Float64Array.of(plannedBytes, plannedBytes)] })
    }
  }
  const aligned = alignTables(tables, settings.logScale && spec.log === true)
  const structure = JSON.stringify([spec.id, curves.map((curve) => [curve.run.info.id, curve.place, curve.spec.key, curve.role])])
  return { curves, aligned, structure, ceiling }
}

/**
 * Which colour a curve has: that of its run when several are drawn; the curves of a single run differ. A number counts the
 * runs' colours.
 */
export function curveColour({ spec, place, role }: Curve, chart: ChartSpec, several: boolean): number | 'evaluation' {
  if (several) return place
  if (role === 'points') return 'evaluation'
  return place + Math.max(0, chart.curves.filter(({ style }) => style !== 'planned').indexOf(spec))
}

/** Lowest, highest and last value of a curve. */
export interface CurveFacts {
  readonly last: number
  readonly lastX: number
  readonly lowest: number
  readonly highest: number
}

/** undefined for a curve without values. */
export function factsOf(x: readonly number[], values: readonly (number | null)[]): CurveFacts | undefined {
  let [lowest, highest, lastAt] = [Infinity, -Infinity, -1]
  for (let i = 0; i < values.length; i++) {
    const value = values[i] ?? null
    if (value === null) continue
    if (value < lowest) lowest = value
    if (value > highest) highest = value
    lastAt = i
  }
  return lastAt < 0 ? undefined : { last: values[lastAt]!, lastX: x[lastAt]!, lowest, highest }
}
