import { describeError, UnslothError } from '#shared/errors.ts'
import { FastLanguageModel } from './fastLanguageModel.ts'
import { saveMerged } from './save/saveMerged.ts'

/** What the process prints as its last line. */
export type MergeAnswer =
  | { readonly folder: string; readonly error: number; readonly allowed: number }
  | { readonly code: string; readonly message: string; readonly hint?: string }

/** Texts on which the merged model is compared with the one it was made from. */
const probes = ['Once upon a time there was', 'The quick brown fox jumps over the lazy dog. 0123456789', 'def main(args):\n    return 0\n']

/** `node merge.mjs ADAPTER FOLDER`: a process of its own, because it loads the addon and the whole model. */
async function merge(adapter: string, folder: string): Promise<MergeAnswer> {
  const generator = await FastLanguageModel.forInference({ modelName: adapter })
  try {
    const ids = probes.map((text) => generator.tokenizer.encode(text, { addSpecialTokens: true })).filter(({ length }) => length > 0)
    const check = await saveMerged(generator.model, folder, { maxShardSize: '5GB', probes: ids })
    return { folder, ...check }
  } finally {
    generator.dispose()
  }
}

const [adapter, folder] = process.argv.slice(2)
const answer = await (adapter === undefined || folder === undefined
  ? Promise.reject(new UnslothError('USAGE', 'merge ADAPTER FOLDER'))
  : merge(adapter, folder)
).catch((error: unknown): MergeAnswer => {
  process.exitCode = 1
  const hint = UnslothError.is(error) ? error.hint : undefined
  return { code: UnslothError.is(error) ? error.code : 'INTERNAL', message: UnslothError.is(error) ? error.message : describeError(error), ...(hint === undefined ? {} : { hint }) }
})
console.log(JSON.stringify(answer))
