import { mkdirSync } from 'node:fs'
import { dirname } from 'node:path'
import * as z from 'zod'
import { cacheFile } from '../io/cacheFile.ts'
import { native } from '../native.ts'
import { nodeFs, readJson, writeFileAtomic } from '../run/files.ts'
import { overheadKey } from './gpuOverhead.ts'

/** cuBLASLt's version (0: none), nine numbers that tell a kind of product, five that tell the fastest way: kernels/cuda/gemmChoices.h. */
const recordNumbers = 15
const numbersOfKind = 10

const recordSchema = z.array(z.int32()).length(recordNumbers)
const fileSchema = z.object({ version: z.literal(1), gpus: z.record(z.string(), z.array(recordSchema)) })
/** The way that was fastest for one kind of product when it was timed. */
export type GemmChoice = z.infer<typeof recordSchema>

/** Builds and drivers whose choices are kept; the oldest go. */
const mostKept = 8

export const gemmChoicesFile = (): string => cacheFile('gemms.json')

const readAll = (path: string) => fileSchema.safeParse(readJson(path)).data?.gpus ?? {}

/** The choices that are kept under a key; none when the file is not there or not ours. */
export const readGemmChoices = (key: string, path = gemmChoicesFile()): readonly GemmChoice[] => readAll(path)[key] ?? []

/** Adds choices to those kept under a key. What another process kept first stays, so that runs multiply in the same way again. */
export function keepGemmChoices(key: string, fresh: readonly GemmChoice[], path = gemmChoicesFile()): void {
  const { [key]: kept = [], ...others } = readAll(path)
  const kind = (choice: GemmChoice) => choice.slice(0, numbersOfKind).join()
  const known = new Set(kept.map(kind))
  const all = [...kept, ...fresh.filter((choice) => !known.has(kind(choice)))]
  const gpus = Object.fromEntries([...Object.entries(others).slice(1 - mostKept), [key, all]])
  mkdirSync(dirname(path), { recursive: true })
  const text = Object.entries(gpus).map(
    ([name, choices]) => `${JSON.stringify(name)}: [\n${choices.map((choice) => JSON.stringify(choice)).join(',\n')}\n]`,
  )
  writeFileAtomic(path, `{"version": 1, "gpus": {\n${text.join(',\n')}\n}}\n`, { disk: nodeFs })
}

/** Products of one GPU: what was timed before is known from the start, and what is timed now is kept. */
export class TimedProducts {
  private readonly index: number
  private readonly key: string

  constructor(index: number) {
    this.index = index
    this.key = overheadKey(index)
    native().adoptGemmChoices(index, Int32Array.from(readGemmChoices(this.key).flat()))
  }

  /** Keeps what was timed since the last call. */
  keep(): void {
    const records = native().takeGemmChoices(this.index)
    if (records.length === 0) return
    const fresh = Array.from({ length: records.length / recordNumbers }, (_, at) => [
      ...records.subarray(at * recordNumbers, (at + 1) * recordNumbers),
    ])
    try {
      keepGemmChoices(this.key, fresh)
    } catch {
      // A cache that cannot be written costs the time of timing again, and no run.
    }
  }
}
