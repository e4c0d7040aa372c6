import type { DataPreview, PreviewSample, PreviewToken } from '#shared/protocol.ts'
import type { Dataset } from './dataset.ts'
import { packRows } from './packRows.ts'
import { ignored, lengthOf, type Sample } from './sample.ts'
import { sampleProblems } from './sampleProblems.ts'
import { StreamDecoder } from './streamDecoder.ts'
import type { Tokenizer } from './tokenizer.ts'

/**
 * The tokens of a sample with what the model does with each. The texts joined are the text of the sample; a token that holds only
 * part of a character has an empty text, and the last one of the character has it whole.
 */
export function previewTokens({ ids, labels }: Pick<Sample, 'ids' | 'labels'>, tokenizer: Tokenizer): PreviewToken[] {
  const decoder = new StreamDecoder(tokenizer, { skipSpecialTokens: false })
  const tokens = Array.from(ids, (id, at): PreviewToken => {
    const special = tokenizer.specialIds.has(id)
    // The first token is never predicted: nothing comes before it.
    return { id, text: decoder.push(id), trained: at > 0 && labels[at] !== ignored, special }
  })
  const rest = decoder.end()
  const last = tokens.at(-1)
  if (rest !== '' && last !== undefined) tokens[tokens.length - 1] = { ...last, text: last.text + rest }
  return tokens
}

/** One sample as it is shown. `number` counts from 1. */
export function previewSample(sample: Sample, number: number, tokenizer: Tokenizer, maxSeqLength = Infinity): PreviewSample {
  const tokens = previewTokens(sample, tokenizer)
  const problems = sampleProblems(sample, tokenizer, maxSeqLength)
  return { number, file: sample.file, line: sample.line, length: tokens.length, trained: sample.labelled, tokens, problems }
}

export interface PreviewChoice {
  /** Numbers of the samples to show, counted from 0. */
  readonly samples: readonly number[]
  readonly maxSeqLength: number
  readonly seed?: number
}

/** So many numbers spread evenly over a data set. */
export const spread = (count: number, samples: number): number[] => {
  const shown = Math.min(count, samples)
  return Array.from({ length: shown }, (_, index) => Math.floor((index * samples) / shown))
}

/** What a data set looks like to the model: numbers about all of it, and some samples token by token. */
export function previewDataset(
  dataset: Dataset,
  tokenizer: Tokenizer,
  { samples: shown, maxSeqLength, seed = 3407 }: PreviewChoice,
): DataPreview {
  const { samples, format, rows, statistics, warnings } = dataset
  const lengths = samples.map((sample) => Math.min(lengthOf(sample), maxSeqLength))
  const packed = packRows(lengths, { rowTokens: maxSeqLength, seed, shuffle: true }).length
  const chosen = shown.filter((index) => index >= 0 && index < samples.length)
  return {
    format: format.format,
    reason: format.reason,
    rows,
    samples: statistics.samples,
    tokens: statistics.tokens,
    trainedTokens: statistics.labelledTokens,
    lengths: statistics.lengths,
    packing: {
      rows: packed,
      rowTokens: maxSeqLength,
      efficiency: packed === 0 ? 0 : statistics.tokens / (packed * maxSeqLength),
    },
    warnings,
    shown: chosen.map((index) => previewSample(samples[index]!, index + 1, tokenizer, maxSeqLength)),
  }
}
