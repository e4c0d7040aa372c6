import type { DataPreview, PreviewSample, PreviewToken } from '#shared/protocol.ts'
import { formatCount } from '#shared/units.ts'
import { previewDataset, spread } from '../../data/preview.ts'
import { readRecipeData, tokenizerOptions } from '../../data/recipeData.ts'
import { loadTokenizer } from '../../data/tokenizer.ts'
import { loadRecipe } from '../../recipe/loadRecipe.ts'
import { resolveModel } from '../../runtime/resolveModel.ts'
import { localData } from '../../train/hubSources.ts'
import type { CommandArgs } from '../commandArgs.ts'

/** Shows what a recipe trains on: numbers about all of it, and some samples with what of them is learned. */
export async function dataCommand({ recipe: source, flags }: CommandArgs<'data'>): Promise<number> {
  const { recipe, warnings } = loadRecipe({ ...source, cwd: process.cwd() })
  for (const warning of warnings) console.error(`warning: ${warning}`)
  const { folder } = await resolveModel(recipe.model.name, { revision: recipe.model.revision })
  const tokenizer = await loadTokenizer(folder, await tokenizerOptions(recipe))
  const { data, groups } = await localData(recipe, undefined, {})
  const { train, evaluation } = await readRecipeData({ ...recipe, data }, tokenizer, { ...progress(), groups })
  const { max_seq_length: maxSeqLength, random_seed: seed } = recipe.training
  const preview = previewDataset(train, tokenizer, { samples: spread(flags.sample, train.samples.length), maxSeqLength, seed })
  const held = evaluation === undefined ? undefined : previewDataset(evaluation, tokenizer, { samples: [], maxSeqLength, seed })
  if (flags.json) console.log(JSON.stringify({ train: preview, evaluation: held ?? null }, null, 2))
  else {
    const colours = process.stdout.isTTY && process.env.NO_COLOR === undefined
    const report = [
      ...summaryLines(preview),
      ...(held === undefined ? [] : ['', 'evaluation', ...summaryLines(held)]),
      ...preview.shown.flatMap((sample) => sampleLines(sample, colours)),
    ]
    console.log(report.join('\n'))
  }
  return 0
}

/** A line on the terminal while a large file is read. */
function progress(): { onRows?: (rows: number) => void } {
  const { stderr } = process
  if (!stderr.isTTY) return {}
  const since = performance.now()
  return {
    onRows: (rows) => {
      if (performance.now() - since > 1000) stderr.write(`\r\u001b[K${formatCount(rows)} rows …\r`)
    },
  }
}

const share = (part: number, whole: number): string => (whole === 0 ? '0 %' : `${((100 * part) / whole).toFixed(1)} %`)

/** The numbers of a preview as text. */
export function summaryLines({
  format,
  reason,
  rows,
  samples,
  tokens,
  trainedTokens,
  lengths,
  packing,
  warnings,
}: DataPreview): string[] {
  const most = Math.max(1, ...lengths.histogram.map((bin) => bin.samples))
  const width = String(lengths.histogram.at(-1)?.to ?? 0).length
  return [
    `format    ${format}: ${reason}`,
    `samples   ${formatCount(samples)} of ${formatCount(rows.rows)} rows`,
    `tokens    ${formatCount(tokens)}, of which ${formatCount(trainedTokens)} are trained (${share(trainedTokens, tokens)})`,
    `length    p50 ${lengths.p50}, p95 ${lengths.p95}, p99 ${lengths.p99}; ${lengths.shortest} to ${lengths.longest}, mean ${lengths.mean.toFixed(1)}`,
    ...lengths.histogram.map(
      ({ from, to, samples: count }) =>
        `  ${String(from).padStart(width)}–${String(to).padEnd(width)} ${'█'.repeat(Math.ceil((40 * count) / most)).padEnd(40)} ${formatCount(count)}`,
    ),
    `packing   ${formatCount(packing.rows)} rows of ${packing.rowTokens} tokens, ${share(packing.efficiency, 1)} filled`,
    ...warnings.map((warning) => `warning   ${warning}`),
  ]
}

const styles = { trained: '\u001b[32m', masked: '\u001b[90m', trainedSpecial: '\u001b[1;32m', maskedSpecial: '\u001b[36m' }

const styleOf = ({ trained, special }: PreviewToken): string =>
  trained ? (special ? styles.trainedSpecial : styles.trained) : special ? styles.maskedSpecial : styles.masked

/** Control characters of the data must not reach the terminal. */
const shown = (text: string): string =>
  text.replace(/\p{Cc}/gu, (character) =>
    character === '\n' || character === '\t' ? character : `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`,
  )

/** A sample as text: trained tokens green and the others grey, or without colours trained ones between `[[` and `]]`. */
export function sampleLines({ number, file, line, length, trained, tokens }: PreviewSample, colours: boolean): string[] {
  const head = `── sample ${number} · ${file}:${line} · ${length} tokens, ${trained} trained`
  let body = ''
  let open = ''
  for (const token of tokens) {
    const style = colours ? styleOf(token) : token.trained ? '[[' : ''
    if (style !== open) {
      body += colours ? style : open === '[[' ? ']]' : '[['
      open = style
    }
    body += shown(token.text)
  }
  return ['', colours ? `\u001b[1m${head}\u001b[0m` : head, body + (colours ? '\u001b[0m' : open === '[[' ? ']]' : '')]
}
