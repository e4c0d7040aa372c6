import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { brotliCompressSync, brotliDecompressSync, constants } from 'node:zlib'

/** The files of a golden case, in this order, in one brotli stream: a JSON line of [name, bytes] pairs, then their contents. */
const caseFiles = [
  'config.json',
  'adapter/adapter_config.json',
  'adapter/adapter_model.safetensors',
  'model.safetensors',
  'golden.safetensors',
]

/** Large quantities that others of the case imply: per-token losses, gradients, and the logits of the merged model stay. */
const implied: ReadonlySet<string> = new Set(['logits', 'lora_logits', 'curve_final_logits'])

type Header = Record<string, { data_offsets: [number, number] }>

/** A safetensors file without some of its tensors. */
function withoutTensors(file: Buffer, dropped: ReadonlySet<string>): Buffer {
  const headerBytes = Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.toString('utf8', 8, 8 + headerBytes)) as Header
  const kept: Header = {}
  const parts: Buffer[] = []
  let at = 0
  for (const [name, tensor] of Object.entries(header).sort(
    ([, a], [, b]) => (a.data_offsets?.[0] ?? -1) - (b.data_offsets?.[0] ?? -1),
  )) {
    if (dropped.has(name)) continue
    if (name === '__metadata__') {
      kept[name] = tensor
      continue
    }
    const [from, to] = tensor.data_offsets
    parts.push(file.subarray(8 + headerBytes + from, 8 + headerBytes + to))
    kept[name] = { ...tensor, data_offsets: [at, at + to - from] }
    at += to - from
  }
  const text = Buffer.from(JSON.stringify(kept))
  const size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(text.length))
  return Buffer.concat([size, text, ...parts])
}

/** Packs a case folder for the repository; with `whole` nothing is left out. */
export async function packCase(folder: string, target: string, whole: boolean): Promise<number> {
  const contents = await Promise.all(caseFiles.map((name) => readFile(join(folder, name))))
  const files = contents.map((data, i) =>
    caseFiles[i] === 'golden.safetensors' && !whole ? withoutTensors(data, implied) : data,
  )
  const index = Buffer.from(`${JSON.stringify(files.map((data, i) => [caseFiles[i], data.length]))}\n`)
  const packed = brotliCompressSync(Buffer.concat([index, ...files]), {
    params: { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_LGWIN]: 24 },
  })
  await writeFile(target, packed)
  return packed.length
}

/** Unpacks a case into a folder. */
export async function unpackCase(packed: string, folder: string): Promise<void> {
  const data = brotliDecompressSync(await readFile(packed))
  const end = data.indexOf(10)
  let at = end + 1
  for (const [name, bytes] of JSON.parse(data.toString('utf8', 0, end)) as [string, number][]) {
    await mkdir(dirname(join(folder, name)), { recursive: true })
    await writeFile(join(folder, name), data.subarray(at, at + bytes))
    at += bytes
  }
}

export const packedSuffix = '.case.br'

/** Names of the packed cases in a folder. */
export async function packedCases(folder: string): Promise<string[]> {
  return (await readdir(folder))
    .filter((name) => name.endsWith(packedSuffix))
    .map((name) => name.slice(0, -packedSuffix.length))
    .sort()
}
