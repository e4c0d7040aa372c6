import { UnslothError } from '#shared/errors.ts'

/** An end of a slice: a number of rows or of hundredths; below 0 it counts from the end. */
interface SliceEnd {
  readonly value: number
  readonly percent: boolean
}

/** A split, or a slice of one, as `datasets` writes it. */
export interface SplitChoice {
  readonly name: string
  readonly from?: SliceEnd
  readonly to?: SliceEnd
}

/** Rows from–to, counted from 0, to exclusive. */
export interface RowRange {
  readonly from: number
  readonly to: number
}

const syntax = /^([\w.-]+)(?:\[\s*(-?\d+(?:\.\d+)?%?)?\s*:\s*(-?\d+(?:\.\d+)?%?)?\s*\])?$/

function readEnd(text: string | undefined, whole: string): SliceEnd | undefined {
  if (text === undefined) return undefined
  const percent = text.endsWith('%')
  const value = Number(percent ? text.slice(0, -1) : text)
  if (percent ? Math.abs(value) > 100 : !Number.isInteger(value))
    throw new UnslothError(
      'DATA',
      `data.split: ${whole}: ${text} is no ${percent ? 'share from −100 % to 100 %' : 'whole number of rows'}.`,
      { hint: splitHint },
    )
  return { value, percent }
}

const splitHint = 'A split is a name, or a name with a slice: train, train[:5%], train[100:200], train[-10%:].'

/** Reads `train`, `train[:5%]`, `train[100:200]`, `train[-10%:]`. */
export function parseSplit(text: string): SplitChoice {
  const match = syntax.exec(text.trim())
  if (match === null)
    throw new UnslothError('DATA', `data.split: ${text} is neither a split nor a slice of one.`, { hint: splitHint })
  const [from, to] = [readEnd(match[2], text), readEnd(match[3], text)]
  return { name: match[1]!, ...(from && { from }), ...(to && { to }) }
}

/** Whether the rows have to be counted before it is known which of them are meant. */
export const needsCount = ({ from, to }: SplitChoice): boolean =>
  [from, to].some((end) => end !== undefined && (end.percent || end.value < 0))

/** As Python rounds. */
function roundHalfEven(value: number): number {
  const below = Math.floor(value)
  const rest = value - below
  return rest > 0.5 || (rest === 0.5 && below % 2 !== 0) ? below + 1 : below
}

/** Which rows are meant. Shares are rounded to the nearest row, as `datasets` does. */
export function rangeOf({ name, from, to }: SplitChoice, rows: number): RowRange {
  const at = (end: SliceEnd | undefined, otherwise: number): number => {
    if (end === undefined) return otherwise
    const count = end.percent ? roundHalfEven((end.value * rows) / 100) : end.value
    return Math.min(rows, Math.max(0, count < 0 || Object.is(count, -0) ? rows + count : count))
  }
  const range = { from: at(from, 0), to: at(to, rows) }
  if (range.from >= range.to && rows > 0)
    throw new UnslothError(
      'DATA',
      `data.split: the slice of ${name} has none of its ${Number.isFinite(rows) ? `${rows} ` : ''}rows.`,
      { hint: splitHint },
    )
  return range
}
