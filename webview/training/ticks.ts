/** Where the axes have their ticks. */

/** Distances between ticks of whole numbers. */
export const wholeIncrements: readonly number[] = Array.from({ length: 14 }, (_, power) =>
  [1, 2, 5].map((digit) => digit * 10 ** power),
).flat()

/** Distances between ticks of bytes: powers of two, which are short in binary units. */
export const byteIncrements: readonly number[] = Array.from({ length: 50 }, (_, i) => 2 ** i)

/** Distances between ticks of time, in seconds. */
export const timeIncrements: readonly number[] = [
  0.001,
  0.002,
  0.005,
  0.01,
  0.02,
  0.05,
  0.1,
  0.2,
  0.5,
  1,
  2,
  5,
  10,
  15,
  30,
  60,
  120,
  300,
  600,
  900,
  1800,
  3600,
  7200,
  14_400,
  21_600,
  43_200,
  ...[1, 2, 5, 10, 20, 50, 100, 200, 500].map((days) => days * 86_400),
]

/** About how many ticks a logarithmic axis should have. */
const wantedTicks = 6

/** Ticks of a logarithmic axis: powers of ten, with steps between them as there is room; within less than a power, even steps. */
export function logSplits(min: number, max: number): number[] {
  if (!(min > 0) || !(max > min)) return []
  const powers = Math.log10(max / min)
  if (powers < 1) return evenSplits(min, max)
  const digits = powers < 2 ? [1, 2, 5] : powers < 4 ? [1, 3] : [1]
  const stride = Math.max(1, Math.ceil(powers / wantedTicks))
  const splits: number[] = []
  for (let power = Math.floor(Math.log10(min)); power <= Math.ceil(Math.log10(max)); power++) {
    if (power % stride !== 0) continue
    for (const digit of digits) {
      const value = Number(`${digit}e${power}`)
      if (value >= min && value <= max) splits.push(value)
    }
  }
  return splits
}

function evenSplits(min: number, max: number): number[] {
  const rough = (max - min) / wantedTicks
  const power = Math.floor(Math.log10(rough))
  const step = Number(`${[1, 2, 5, 10].find((digit) => digit * 10 ** power >= rough) ?? 10}e${power}`)
  const splits: number[] = []
  for (let i = Math.ceil(min / step); i * step <= max; i++) splits.push(Number((i * step).toPrecision(12)))
  return splits
}
