import { parentPort, workerData } from 'node:worker_threads'
import { describeError, UnslothError } from '#shared/errors.ts'
import { encodeBatch } from './encodedBatch.ts'
import type { ThreadAnswer, ThreadData } from './encodeRows.ts'
import { RowEncoder } from './rowEncoder.ts'
import type { SourceRow } from './row.ts'
import { loadTokenizer, type TokenizerOptions } from './tokenizer.ts'

/** A thread that encodes batches of rows: started with a plan, asked by messages, ended from outside. */
const { tokenizerFolder, plan, tokenizerOptions } = workerData as ThreadData
const ready = loadTokenizer(tokenizerFolder, tokenizerOptions as TokenizerOptions).then(
  (tokenizer) => new RowEncoder(tokenizer, plan),
)

function answer(message: ThreadAnswer, transfer: ArrayBuffer[] = []): void {
  parentPort?.postMessage(message, transfer)
}

parentPort?.on('message', (rows: readonly SourceRow[]) => {
  ready
    .then((encoder) => {
      const batch = encodeBatch(encoder, rows)
      answer({ batch }, [batch.ids.buffer as ArrayBuffer, batch.table.buffer as ArrayBuffer, batch.spans.buffer as ArrayBuffer])
    })
    .catch((error: unknown) => {
      const known = UnslothError.is(error)
      answer({
        failed: {
          code: known ? error.code : 'INTERNAL',
          message: known ? error.message : describeError(error),
          hint: known ? (error.hint ?? '') : '',
        },
      })
    })
})
