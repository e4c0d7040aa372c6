import type { HydrateMessage, Mark, Range, RunDelta, RunInfo, TableDelta, UpdateMessage } from '#shared/panelProtocol.ts'

/** The points of a table that the panel has. */
export interface TablePoints {
  readonly x: Float64Array
  readonly columns: Readonly<Record<string, Float64Array>>
  readonly smoothed: Readonly<Record<string, Float64Array>>
  /** Rows of one pair of points; 1: every row. */
  readonly bucket: number
}

/** One run as the panel has it. */
export interface ShownRun {
  info: RunInfo
  steps: TablePoints
  evals: TablePoints
  marks: readonly Mark[]
  extent: Range | null
  ceilings: Readonly<Record<string, number>>
}

export const noPoints: TablePoints = { x: new Float64Array(0), columns: {}, smoothed: {}, bucket: 1 }

/** What a message has changed. */
export interface ModelChange {
  readonly infos: boolean
  readonly data: boolean
}

/** What the host has told, put together. Holds the points on the screen, never a whole series. */
export class PanelModel {
  #runs = new Map<string, ShownRun>()
  /** The host's clock minus the page's, in milliseconds. */
  clockOffset = 0

  /** In the order in which they are shown. */
  get runs(): readonly ShownRun[] {
    return [...this.#runs.values()]
  }

  run(id: string): ShownRun | undefined {
    return this.#runs.get(id)
  }

  apply(message: HydrateMessage | UpdateMessage): ModelChange {
    this.clockOffset = message.now - Date.now()
    if (message.type === 'hydrate') this.#runs = new Map()
    if (message.runs !== undefined) this.#setRuns(message.runs)
    for (const delta of message.data) this.#applyDelta(delta)
    return {
      infos: message.runs !== undefined,
      data: message.type === 'hydrate' || message.data.length > 0 || message.runs !== undefined,
    }
  }

  #setRuns(infos: readonly RunInfo[]): void {
    const before = this.#runs
    this.#runs = new Map(
      infos.map((info) => {
        const run = before.get(info.id) ?? { info, steps: noPoints, evals: noPoints, marks: [], extent: null, ceilings: {} }
        run.info = info
        return [info.id, run]
      }),
    )
  }

  #applyDelta(delta: RunDelta): void {
    const run = this.#runs.get(delta.id)
    if (run === undefined) return
    if (delta.steps !== undefined) run.steps = continued(run.steps, delta.steps)
    if (delta.evals !== undefined) run.evals = continued(run.evals, delta.evals)
    if (delta.marks !== undefined) run.marks = delta.marks
    run.extent = delta.extent
    run.ceilings = delta.ceilings
  }
}

/** The points before, cut after `keep`, and the new ones. */
function continued(before: TablePoints, { keep, x, columns, smoothed, bucket }: TableDelta): TablePoints {
  if (keep === 0) return { x, columns, smoothed, bucket }
  return {
    x: joined(before.x, keep, x),
    bucket,
    columns: joinedColumns(before.columns, keep, columns, x.length),
    smoothed: joinedColumns(before.smoothed, keep, smoothed, x.length),
  }
}

function joined(before: Float64Array | undefined, keep: number, more: Float64Array): Float64Array {
  const all = new Float64Array(keep + more.length).fill(NaN, 0, keep)
  if (before !== undefined) all.set(before.subarray(0, keep))
  all.set(more, keep)
  return all
}

function joinedColumns(
  before: Readonly<Record<string, Float64Array>>,
  keep: number,
  more: Readonly<Record<string, Float64Array>>,
  length: number,
): Record<string, Float64Array> {
  const all: Record<string, Float64Array> = {}
  for (const [key, values] of Object.entries(more)) all[key] = joined(before[key], keep, values)
  for (const [key, values] of Object.entries(before)) all[key] ??= joined(values, keep, new Float64Array(length).fill(NaN))
  return all
}
