import { open } from 'node:fs/promises'
import { metricNumber } from '#shared/metrics.ts'

const wholeBytes = 256 * 1024
const places = 32
const placeBytes = 4096

/** Training losses from the whole of a small metrics file, or from places spread over a large one, in their order. */
export async function lossSamples(path: string): Promise<number[]> {
  let file
  try {
    file = await open(path, 'r')
  } catch {
    return []
  }
  try {
    const { size } = await file.stat()
    const read = async (start: number, length: number): Promise<string> => {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, start)
      return buffer.toString('utf8', 0, bytesRead)
    }
    if (size <= wholeBytes) return lossesIn(await read(0, size))
    const losses: number[] = []
    for (let place = 0; place < places; place++)
      losses.push(...lossesIn(await read(Math.floor((place * (size - placeBytes)) / (places - 1)), placeBytes)).slice(0, 4))
    return losses
  } finally {
    await file.close()
  }
}

function lossesIn(text: string): number[] {
  return [...text.matchAll(/^\{"type":"step".*?"loss":("?[-\w.+]+"?)/gm)].flatMap(([, written]) => {
    const value = metricNumber(JSON.parse(written!))
    return value === undefined || !Number.isFinite(value) ? [] : [value]
  })
}
