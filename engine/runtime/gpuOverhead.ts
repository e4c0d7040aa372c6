import { execFile } from 'node:child_process'
import { mkdirSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { promisify } from 'node:util'
import * as z from 'zod'
import { cacheFile } from '../io/cacheFile.ts'
import { addonPath, native } from '../native.ts'
import { engineEntry } from '../projectRoot.ts'
import { nodeFs, readJson, writeFileAtomic } from '../run/files.ts'
import type { DeviceChoice } from './runtime.ts'

const overheadSchema = z.object({
  /** Of the driver's context, and of kernels once they were used. */
  contextBytes: z.number().nonnegative(),
  /** Of one command in a CUDA graph. */
  graphNodeBytes: z.number().nonnegative(),
})
/** Memory of a GPU that no arena holds, as it was measured there. */
export type GpuOverhead = z.infer<typeof overheadSchema>

const fileSchema = z.object({ version: z.literal(1), gpus: z.record(z.string(), overheadSchema) })

/** What is counted where nothing could be measured: what it was on one H200. */
export const assumedOverhead: GpuOverhead = { contextBytes: 512 * 2 ** 20, graphNodeBytes: 2048 }

export const overheadFile = (): string => cacheFile('gpus.json')

/** What it depends on: the card, its driver, and the kernels. */
export function overheadKey(index: number): string {
  const { cuda } = native().describe()
  const gpu = cuda?.gpus.find((each) => each.index === index)
  const { size, mtimeMs } = statSync(addonPath())
  return [gpu?.name, gpu?.totalBytes, cuda?.driver, size, Math.round(mtimeMs)].join(' ')
}

/** The figures that are kept under a key; undefined when there are none, or the file is not ours. */
export const readOverhead = (key: string, path = overheadFile()): GpuOverhead | undefined =>
  fileSchema.safeParse(readJson(path)).data?.gpus[key]

export function keepOverhead(key: string, overhead: GpuOverhead, path = overheadFile()): void {
  const others = fileSchema.safeParse(readJson(path)).data?.gpus ?? {}
  mkdirSync(dirname(path), { recursive: true })
  writeFileAtomic(path, `${JSON.stringify({ version: 1, gpus: { ...others, [key]: overhead } }, null, 2)}\n`, { disk: nodeFs })
}

/** The figures of a GPU as far as they were measured before: for answers that cannot wait. */
export const knownOverhead = (index: number): GpuOverhead | undefined => readOverhead(overheadKey(index))

/** Most milliseconds that measuring may take; it takes a few seconds. */
const measuringTime = 90_000

/**
 * What a process takes on a device beside what it asks for: measured once for each card, driver and build, in a process of its own, whose
 * memory is given back. Undefined on a processor.
 */
export async function gpuOverhead(device: DeviceChoice): Promise<GpuOverhead | undefined> {
  if (device.kind === 'cpu') return undefined
  const key = overheadKey(device.index)
  const known = readOverhead(key)
  if (known !== undefined) return known
  try {
    const { stdout } = await promisify(execFile)(
      process.execPath,
      [engineEntry(), 'gpu-overhead', '--device', `cuda:${device.index}`],
      { timeout: measuringTime },
    )
    const measured = overheadSchema.parse(JSON.parse(stdout))
    keepOverhead(key, measured)
    return measured
  } catch {
    // A GPU that is full says nothing about the next time.
    return assumedOverhead
  }
}
