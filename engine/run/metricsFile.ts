import { open } from 'node:fs/promises'
import fs from 'node:fs'
import type { MetricBatch } from '#shared/metrics.ts'
import { decodeMetric } from '#shared/metrics.ts'
import type { AppendFile } from './appendFile.ts'
import { errorCode } from './files.ts'
import { MetricsParser } from './metricsParser.ts'

/** Where a reader of metrics.jsonl stands. */
export interface MetricsCursor {
  /** Bytes read. */
  readonly offset: number
  /** The bytes before the offset, by which the reader notices that the file was cut back and has grown again. */
  readonly tail: string
}

export interface MetricsRead extends MetricBatch {
  /** Give it to the next call. */
  readonly cursor: MetricsCursor
  /** The file is not the continuation of what was read (the run was resumed from an earlier step): forget that first. */
  readonly reset: boolean
  /** There is more to read at once. */
  readonly more: boolean
}

/** The beginning of the file. */
export const metricsStart: MetricsCursor = { offset: 0, tail: '' }

const tailBytes = 96

/**
 * Reads the whole lines that follow the cursor, at most about `limit` bytes of them. A line that is still being written is
 * left for the next call. A missing file is an empty one.
 */
export async function readMetricsFile(path: string, cursor: MetricsCursor = metricsStart, limit = 8 << 20): Promise<MetricsRead> {
  let file
  try {
    file = await open(path, 'r')
  } catch (error) {
    if (errorCode(error) !== 'ENOENT') throw error
    return { ...new MetricsParser().batch(), cursor: metricsStart, reset: cursor.offset > 0, more: false }
  }
  try {
    const { size } = await file.stat()
    let from = cursor
    if (from.offset > 0) {
      const before = Buffer.alloc(from.tail.length)
      const { bytesRead } = await file.read(before, 0, before.length, from.offset - before.length)
      if (size < from.offset || bytesRead < before.length || before.toString('latin1') !== from.tail) from = metricsStart
    }
    const reset = from.offset !== cursor.offset
    let chunk = Buffer.allocUnsafe(Math.max(0, Math.min(limit, size - from.offset)))
    let filled = 0
    let end = 0
    for (;;) {
      const { bytesRead } = await file.read(chunk, filled, chunk.length - filled, from.offset + filled)
      filled += bytesRead
      end = chunk.subarray(0, filled).lastIndexOf(0x0a) + 1
      // A line longer than the limit is read whole.
      if (end > 0 || filled < chunk.length || from.offset + filled >= size) break
      const larger = Buffer.allocUnsafe(Math.min(chunk.length * 2, size - from.offset))
      chunk.copy(larger, 0, 0, filled)
      chunk = larger
    }
    const parser = new MetricsParser()
    parser.push(chunk, end)
    const offset = from.offset + end
    const tail =
      end >= tailBytes
        ? chunk.toString('latin1', end - tailBytes, end)
        : (from.tail + chunk.toString('latin1', 0, end)).slice(-tailBytes)
    return { ...parser.batch(), cursor: { offset, tail }, reset, more: end > 0 && offset < size && filled === chunk.length }
  } finally {
    await file.close()
  }
}

/** Cuts metrics.jsonl before the first record of a later step than `step`. */
export function cutMetricsAfter(file: AppendFile, step: number): void {
  const fd = fs.openSync(file.path, 'r')
  try {
    const chunk = Buffer.allocUnsafe(1 << 20)
    let rest = Buffer.alloc(0)
    let lineStart = 0
    for (let position = 0; ;) {
      const count = fs.readSync(fd, chunk, 0, chunk.length, position)
      if (count === 0) return
      position += count
      let data = Buffer.concat([rest, chunk.subarray(0, count)])
      for (let at = data.indexOf(0x0a); at >= 0; at = data.indexOf(0x0a)) {
        const record = decodeMetric(data.toString('utf8', 0, at))
        if (record !== undefined && record.step > step) {
          file.truncate(lineStart)
          return
        }
        lineStart += at + 1
        data = data.subarray(at + 1)
      }
      rest = Buffer.from(data)
    }
  } finally {
    fs.closeSync(fd)
  }
}
