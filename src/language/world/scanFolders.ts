import { open, readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'

/** Bounds of a look at a folder tree: a home folder opened by mistake costs no more than this. */
const bounds = { depth: 8, entries: 30_000, results: 500, milliseconds: 5000 }

const skipped = new Set([
  'node_modules',
  '.git',
  '.hg',
  '.svn',
  'dist',
  'build',
  'out',
  'target',
  '__pycache__',
  '.venv',
  'venv',
  '.vscode',
  '.idea',
  'site-packages',
  '.cache',
  'checkpoints',
])
const dataName = /\.(?:jsonl|ndjson|csv|tsv|parquet)(?:\.gz)?$/i
const jsonName = /\.json(?:\.gz)?$/i
/** JSON files that are known to be no data. */
const otherJson = new RegExp(
  '^(?:package(?:-lock)?|tsconfig.*|jsconfig.*|config|generation_config|adapter_config|tokenizer.*' +
    '|special_tokens_map|added_tokens|vocab|preprocessor_config|processor_config|chat_template|status|control|heartbeat' +
    '|checkpoint|.*\\.schema|.*\\.index|launch|settings|tasks|manifest|composer|\\..*)\\.json$',
  'i',
)

export interface ScannedModel {
  readonly folder: string
  readonly kind: 'model' | 'adapter'
  /** Of its safetensors files. */
  readonly bytes: number
}

export interface ScannedDataset {
  readonly path: string
  readonly bytes: number
}

export interface FolderScan {
  readonly models: readonly ScannedModel[]
  readonly datasets: readonly ScannedDataset[]
  /** Whether a bound was met, so that there may be more. */
  readonly cut: boolean
}

const sizeOf = (path: string): Promise<number> =>
  stat(path).then(
    ({ size }) => size,
    () => 0,
  )

/** Whether a .json file holds rows, by its first bytes. */
async function holdsRows(path: string): Promise<boolean> {
  if (/\.gz$/i.test(path)) return true
  const handle = await open(path, 'r').catch(() => undefined)
  if (handle === undefined) return false
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(512), 0, 512, 0)
    const head = buffer.toString('utf8', 0, bytesRead).replace(/^\ufeff/, '')
    return /^\s*\[\s*\{/.test(head) || /^\s*\{\s*"data"\s*:\s*\[/.test(head) || /^\s*\{.*\}\s*\n\s*\{/.test(head)
  } catch {
    return false
  } finally {
    await handle.close()
  }
}

/** Models and data sets below some folders. Breadth first, so that what is near is found when a bound is met. */
export async function scanFolders(roots: readonly string[]): Promise<FolderScan> {
  const models: ScannedModel[] = []
  const datasets: ScannedDataset[] = []
  const end = Date.now() + bounds.milliseconds
  let seen = 0
  let cut = false
  const queue = roots.map((folder) => ({ folder, depth: 0 }))
  // The queue grows while it is gone through.
  for (const { folder, depth } of queue) {
    if (seen > bounds.entries || Date.now() > end || models.length + datasets.length > bounds.results) {
      cut = true
      break
    }
    const entries = await readdir(folder, { withFileTypes: true }).catch(() => [])
    seen += entries.length
    const names = new Set(entries.map(({ name }) => name))
    const weights = entries.filter(({ name }) => name.endsWith('.safetensors'))
    const kind = names.has('adapter_config.json') ? 'adapter' : names.has('config.json') ? 'model' : undefined
    if (kind !== undefined && weights.length > 0) {
      const sizes = await Promise.all(weights.slice(0, 200).map(({ name }) => sizeOf(join(folder, name))))
      models.push({ folder, kind, bytes: sizes.reduce((sum, size) => sum + size, 0) })
    }
    for (const entry of entries.slice(0, bounds.entries)) {
      const path = join(folder, entry.name)
      if (entry.isDirectory()) {
        if (depth < bounds.depth && !skipped.has(entry.name) && !(entry.name.startsWith('.') && depth > 0))
          queue.push({ folder: path, depth: depth + 1 })
      } else if (kind === undefined && !names.has('status.json') && datasets.length < bounds.results) {
        const rows =
          dataName.test(entry.name) || (jsonName.test(entry.name) && !otherJson.test(entry.name) && (await holdsRows(path)))
        if (rows) datasets.push({ path, bytes: await sizeOf(path) })
      }
    }
  }
  return { models, datasets, cut }
}
