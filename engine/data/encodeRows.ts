import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { isMainThread, Worker, workerData } from 'node:worker_threads'
import { UnslothError, type ErrorCode } from '#shared/errors.ts'
import { encodeBatch, type EncodedBatch } from './encodedBatch.ts'
import { projectRoot } from '../projectRoot.ts'
import { RowEncoder, type EncodePlan } from './rowEncoder.ts'
import type { SourceRow } from './row.ts'
import type { Tokenizer } from './tokenizer.ts'

/** Rows and characters that go to a thread at once. */
const batchRows = 512
const batchSize = 1 << 20
/** Batches that wait for a thread or for their turn, for each thread: what bounds the memory. */
const inFlight = 3

const sizeOf = (row: SourceRow): number => ('text' in row ? row.text.length : 'value' in row ? approximateSize(row.value) : 0)

/** Characters of the texts in a value, roughly. */
function approximateSize(value: unknown): number {
  if (typeof value === 'string') return value.length
  if (typeof value !== 'object' || value === null) return 8
  let size = 0
  for (const inner of Object.values(value)) size += approximateSize(inner)
  return size
}

async function* batchesOf(rows: AsyncIterable<SourceRow>): AsyncGenerator<SourceRow[]> {
  let batch: SourceRow[] = []
  let size = 0
  for await (const row of rows) {
    batch.push(row)
    size += sizeOf(row)
    if (batch.length < batchRows && size < batchSize) continue
    yield batch
    batch = []
    size = 0
  }
  if (batch.length > 0) yield batch
}

/** What a thread is started with. */
export interface ThreadData {
  readonly unslothDataThread: true
  readonly tokenizerFolder: string
  readonly plan: EncodePlan
  /** A tokenizer changed by its doctor: chat template and ids that the files do not have. */
  readonly tokenizerOptions: unknown
}

/** A thread's answer to a batch. */
export type ThreadAnswer =
  | { readonly batch: EncodedBatch }
  | { readonly failed: { readonly code: ErrorCode; readonly message: string; readonly hint: string } }

/** Whether this is a thread that was started to encode rows. */
export const isDataThread = (): boolean => !isMainThread && (workerData as Partial<ThreadData> | null)?.unslothDataThread === true

/** The bundle of the engine is the script of a thread; where the sources run unbundled (tests), the loader has to be there, too. */
function threadScript(): { code: string; eval: boolean } | undefined {
  if (import.meta.url?.endsWith('.ts') === true) {
    const source = JSON.stringify(pathToFileURL(join(projectRoot(), 'engine', 'data', 'encodeThread.ts')).href)
    return { code: `import('tsx/esm/api').then(({ register }) => (register(), import(${source})))`, eval: true }
  }
  const path = join(projectRoot(), 'dist', 'engine.mjs')
  return existsSync(path) ? { code: path, eval: false } : undefined
}

class EncodeThread {
  private readonly worker: Worker
  private readonly waiting: { resolve: (batch: EncodedBatch) => void; reject: (error: unknown) => void }[] = []

  constructor(script: { code: string; eval: boolean }, data: ThreadData) {
    this.worker = new Worker(script.code, { eval: script.eval, workerData: data, execArgv: [] })
    this.worker.on('message', (answer: ThreadAnswer) => {
      const next = this.waiting.shift()
      if ('batch' in answer) next?.resolve(answer.batch)
      else next?.reject(new UnslothError(answer.failed.code, answer.failed.message, { hint: answer.failed.hint }))
    })
    this.worker.on('error', (error) => this.fail(error))
    this.worker.on('exit', () => this.fail(new UnslothError('INTERNAL', 'A thread that prepares data ended early.')))
  }

  encode(rows: readonly SourceRow[]): Promise<EncodedBatch> {
    const answer = new Promise<EncodedBatch>((resolve, reject) => this.waiting.push({ resolve, reject }))
    this.worker.postMessage(rows)
    return answer
  }

  get load(): number {
    return this.waiting.length
  }

  async end(): Promise<void> {
    this.waiting.length = 0
    await this.worker.terminate()
  }

  private fail(error: unknown): void {
    for (const { reject } of this.waiting.splice(0)) reject(error)
  }
}

/** Encodes rows in this thread, letting others have their turn between batches. */
async function* encodeHere(rows: AsyncIterable<SourceRow>, tokenizer: Tokenizer, plan: EncodePlan): AsyncGenerator<EncodedBatch> {
  const encoder = new RowEncoder(tokenizer, plan)
  for await (const batch of batchesOf(rows)) {
    yield encodeBatch(encoder, batch)
    await new Promise((resolve) => setImmediate(resolve))
  }
}

async function* encodeInThreads(rows: AsyncIterable<SourceRow>, threads: readonly EncodeThread[]): AsyncGenerator<EncodedBatch> {
  const queue: Promise<EncodedBatch>[] = []
  try {
    for await (const batch of batchesOf(rows)) {
      const thread = threads.reduce((idlest, other) => (other.load < idlest.load ? other : idlest))
      const answer = thread.encode(batch)
      // It is awaited in its turn; a failure before that is no unhandled one.
      answer.catch(() => undefined)
      queue.push(answer)
      if (queue.length >= threads.length * inFlight) yield await queue.shift()!
    }
    while (queue.length > 0) yield await queue.shift()!
  } finally {
    await Promise.all(threads.map((thread) => thread.end()))
  }
}

/** Samples of rows in the order of the rows, made in so many threads (0: this one). */
export function encodeRows(
  rows: AsyncIterable<SourceRow>,
  tokenizer: Tokenizer,
  plan: EncodePlan,
  threads: number,
): AsyncGenerator<EncodedBatch> {
  const script = threads > 0 ? threadScript() : undefined
  if (script === undefined) return encodeHere(rows, tokenizer, plan)
  const data: ThreadData = {
    unslothDataThread: true,
    tokenizerFolder: tokenizer.folder,
    plan,
    tokenizerOptions: tokenizer.options,
  }
  return encodeInThreads(
    rows,
    Array.from({ length: threads }, () => new EncodeThread(script, data)),
  )
}
