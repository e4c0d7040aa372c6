import { buildDataset, type DatasetOptions } from '../../../engine/data/dataset.ts'
import { loadTokenizer, type Tokenizer } from '../../../engine/data/tokenizer.ts'
import type { Recipe } from '#shared/recipe.ts'
import type { TokenFacts } from '../workspace.ts'

export interface TokenRequest {
  readonly data: Recipe['data']
  readonly files: readonly string[]
  readonly folder: string
  /** Rows to look at. */
  readonly rows: number
  /** Whether those are all rows. */
  readonly whole: boolean
}

type Format = NonNullable<DatasetOptions['format']>

let latest: { readonly folder: string; readonly tokenizer: Tokenizer } | undefined

/** Lengths of the first samples in tokens, made as the engine makes them. */
export async function tokenFacts({ data, files, folder, rows, whole }: TokenRequest): Promise<TokenFacts> {
  if (latest?.folder !== folder) latest = { folder, tokenizer: await loadTokenizer(folder) }
  const { statistics } = await buildDataset(
    {
      files,
      maxSamples: rows,
      maxSeqLength: 2 ** 31 - 1,
      format: (data.format_type === 'raw' ? 'text' : String(data.format_type)) as Format,
      columns: { text: data.text_column },
      ...(data.chat_template === null ? {} : { chatTemplate: data.chat_template }),
    },
    latest.tokenizer,
  )
  const { mean, p50, p99, longest } = statistics.lengths
  return { samples: statistics.samples, mean, p50, p99, longest, whole }
}

/** Forgets the tokenizer that was read last. */
export function forgetTokenizer(): void {
  latest = undefined
}
