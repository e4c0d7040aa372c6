import { dirname } from 'node:path'
import { mkdirSync } from 'node:fs'
import * as z from 'zod'
import { cacheFile } from '../io/cacheFile.ts'
import { nodeFs, readJson, writeFileAtomic } from '../run/files.ts'
import type { StepBench } from './step.ts'

const figureSchema = z.object({
  /** `cpu`, `cuda:0` */
  device: z.string(),
  /** The shape that was measured, and its number formats. */
  shape: z.string(),
  numbers: z.string(),
  /** Of whole training steps. */
  gflops: z.number().positive(),
  /** Floating-point operations of a trained token: the size of the model, as far as time goes. */
  flopsPerToken: z.number().positive(),
  /** ISO 8601. */
  measuredAt: z.string(),
})
/** How fast a device trains, as `unsloth bench` measured it. */
export type SpeedFigure = z.infer<typeof figureSchema>

const fileSchema = z.object({ version: z.literal(1), figures: z.array(figureSchema) })
const mostFigures = 100

/** Where figures are kept. */
export const speedFile = (environment: NodeJS.ProcessEnv = process.env): string => cacheFile('speed.json', environment)

/** What was measured on this machine; nothing when the file is not there or not ours. */
export const readSpeeds = (path = speedFile()): readonly SpeedFigure[] => fileSchema.safeParse(readJson(path)).data?.figures ?? []

/** Keeps the figure of a measurement in place of an earlier one of the same kind. */
export function keepSpeed(
  { device, shape, numbers, gflops, tokensPerSecond }: StepBench,
  path = speedFile(),
  now = new Date(),
): void {
  // A processor is named there by its threads.
  const where = device.startsWith('cuda') ? device : 'cpu'
  const figure: SpeedFigure = {
    device: where,
    shape,
    numbers,
    gflops,
    flopsPerToken: (gflops * 1e9) / tokensPerSecond,
    measuredAt: now.toISOString(),
  }
  const others = readSpeeds(path).filter((other) => other.device !== where || other.shape !== shape || other.numbers !== numbers)
  mkdirSync(dirname(path), { recursive: true })
  writeFileAtomic(path, `${JSON.stringify({ version: 1, figures: [figure, ...others].slice(0, mostFigures) }, null, 2)}\n`, {
    disk: nodeFs,
  })
}

/**
 * Seconds that a trained token takes on a kind of device (`cpu`, `cuda`): by the speed that was measured there with the model whose
 * work for a token is nearest to `flopsPerToken`. Undefined where nothing was measured.
 */
export function secondsPerToken(flopsPerToken: number, device: string, figures: readonly SpeedFigure[]): number | undefined {
  const kind = (name: string): string => name.split(':')[0]!
  const distance = (figure: SpeedFigure): number => Math.abs(Math.log(figure.flopsPerToken / flopsPerToken))
  const [nearest] = figures.filter((figure) => kind(figure.device) === kind(device)).sort((a, b) => distance(a) - distance(b))
  return nearest === undefined ? undefined : flopsPerToken / (nearest.gflops * 1e9)
}
