import type { PanelStrings } from '#shared/panelStrings.ts'
import type { ShownRun } from './panelModel.ts'

/** How the values of a chart are written. */
export type Unit = 'loss' | 'rate' | 'speed' | 'bytes' | 'percent' | 'degrees' | 'watts' | 'number'

/** How a curve is drawn: `trend` is a raw curve with its moving average before it. `planned` is the level of the plan. */
export type CurveStyle = 'trend' | 'line' | 'points' | 'planned'

export interface CurveSpec {
  readonly table: 'steps' | 'evals'
  /** The metric's key in metrics.jsonl. */
  readonly key: string
  readonly style: CurveStyle
  /** What tells it from the chart's other curves. */
  readonly label?: string
}

export interface ChartSpec {
  readonly id: string
  readonly title: string
  readonly unit: Unit
  readonly curves: readonly CurveSpec[]
  /** Follows the switch for logarithmic axes. */
  readonly log?: boolean
  /** The y axis begins at 0. */
  readonly fromZero?: boolean
  readonly maximum?: number
  /** Twice as wide where there is room. */
  readonly wide?: boolean
  /** What stands there while there are no values. */
  readonly empty: string
}

const memoryKey = 'memory_bytes'
/** Figures of GPUs: `gpu_utilization`, or `gpu0_utilization` where there are several; percent, °C, W. */
const gpuCharts = [
  { figure: 'utilization', id: 'gpu', title: 'chartGpu', unit: 'percent', maximum: 100 },
  { figure: 'temperature', id: 'gpuTemperature', title: 'chartGpuTemperature', unit: 'degrees', maximum: undefined },
  { figure: 'power', id: 'gpuPower', title: 'chartGpuPower', unit: 'watts', maximum: undefined },
] as const
const gpuFigure = (key: string): string | undefined => /^gpu\d*_(utilization|temperature|power)$/.exec(key)?.[1]
const isMemory = (key: string): boolean => key === memoryKey || /memory.*_bytes$/.test(key)
const memoryLabel = (key: string, strings: PanelStrings): string =>
  key === memoryKey ? strings.measured : readable(key.slice(0, -'_bytes'.length))
const known = new Set(['loss', 'learning_rate', 'grad_norm', 'tokens_per_second', 'eval_loss'])

/** The charts for what the runs have measured, in their order on the page. Metrics that nobody knows get charts of their own. */
export function chartSpecs(runs: readonly ShownRun[], strings: PanelStrings): ChartSpec[] {
  const stepKeys = [...new Set(runs.flatMap(({ steps }) => Object.keys(steps.columns)))]
  const evalKeys = [...new Set(runs.flatMap(({ evals }) => Object.keys(evals.columns)))]
  const memory = stepKeys.filter(isMemory)
  const { noValues: empty } = strings
  const charts: ChartSpec[] = [
    {
      id: 'loss',
      title: strings.chartLoss,
      unit: 'loss',
      log: true,
      wide: true,
      empty: strings.waitingForSteps,
      curves: [
        { table: 'steps', key: 'loss', style: 'trend' },
        { table: 'evals', key: 'eval_loss', style: 'points', label: strings.evaluation },
      ],
    },
    {
      id: 'evalLoss',
      title: strings.chartEvalLoss,
      unit: 'loss',
      log: true,
      empty: runs.some(({ info }) => info.alive) ? strings.noEvaluation : strings.neverEvaluated,
      curves: [{ table: 'evals', key: 'eval_loss', style: 'points' }],
    },
    {
      id: 'learningRate',
      title: strings.chartLearningRate,
      unit: 'rate',
      log: true,
      empty,
      curves: [{ table: 'steps', key: 'learning_rate', style: 'line' }],
    },
    {
      id: 'gradNorm',
      title: strings.chartGradNorm,
      unit: 'loss',
      log: true,
      empty,
      curves: [{ table: 'steps', key: 'grad_norm', style: 'trend' }],
    },
    {
      id: 'speed',
      title: strings.chartSpeed,
      unit: 'speed',
      fromZero: true,
      empty,
      curves: [{ table: 'steps', key: 'tokens_per_second', style: 'trend' }],
    },
    {
      id: 'memory',
      title: strings.chartMemory,
      unit: 'bytes',
      fromZero: true,
      empty,
      curves: [
        ...(memory.length === 0 ? [memoryKey] : memory).map((key): CurveSpec => ({
          table: 'steps',
          key,
          style: 'line',
          label: memoryLabel(key, strings),
        })),
        { table: 'steps', key: 'planned', style: 'planned', label: strings.planned },
      ],
    },
  ]
  for (const { figure, id, title, unit, maximum } of gpuCharts) {
    const keys = stepKeys.filter((key) => gpuFigure(key) === figure)
    if (keys.length === 0) continue
    charts.push({
      id,
      title: strings[title],
      unit,
      fromZero: true,
      empty,
      ...(maximum === undefined ? {} : { maximum }),
      curves: keys.map((key) => ({ table: 'steps', key, style: 'trend', ...(keys.length > 1 ? { label: readable(key) } : {}) })),
    })
  }
  for (const key of stepKeys) {
    if (known.has(key) || gpuFigure(key) !== undefined || isMemory(key)) continue
    charts.push({
      id: `steps.${key}`,
      title: readable(key),
      unit: 'number',
      empty,
      curves: [{ table: 'steps', key, style: 'trend' }],
    })
  }
  for (const key of evalKeys) {
    if (known.has(key)) continue
    charts.push({
      id: `evals.${key}`,
      title: readable(key),
      unit: 'number',
      empty,
      curves: [{ table: 'evals', key, style: 'points' }],
    })
  }
  return charts
}

/** `rewards/accuracies_mean` → "Rewards / accuracies mean". */
export function readable(key: string): string {
  const words = key.replaceAll('/', ' / ').replaceAll('_', ' ').trim()
  return words.charAt(0).toUpperCase() + words.slice(1)
}
