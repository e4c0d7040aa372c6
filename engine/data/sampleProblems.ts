import { formatCount } from '#shared/units.ts'
import { ignored, type Sample } from './sample.ts'
import type { Tokenizer } from './tokenizer.ts'

type Tokens = Pick<Sample, 'ids' | 'labels'>

/** Whether a sample is as long as samples may be: its end may be cut off. */
export const fillsLimit = ({ ids }: Pick<Sample, 'ids'>, maxSeqLength: number): boolean => ids.length >= maxSeqLength

/** What looks wrong with a sample, a sentence each; these are the usual faults of chat templates and tokenizers. */
export function sampleProblems({ ids, labels }: Tokens, tokenizer: Tokenizer, maxSeqLength: number): string[] {
  const { bosId, eosIds, unkToken } = tokenizer
  const full = fillsLimit({ ids }, maxSeqLength)
  const problems: string[] = []
  if (bosId !== undefined && ids[0] === bosId && ids[1] === bosId) {
    problems.push('It begins with two BOS tokens: the chat template writes one that the tokenizer adds as well.')
  }
  if (full) problems.push(`It fills max_seq_length (${formatCount(maxSeqLength)} tokens): its end may be cut off.`)
  else if (eosIds.length > 0 && !labels.some((label) => label !== ignored && eosIds.includes(label))) {
    problems.push('No end token is trained: the model does not learn where an answer ends.')
  }
  const unknown = unkToken === undefined ? 0 : countUnknown(ids, tokenizer, unkToken)
  if (unknown > 0) problems.push(`${formatCount(unknown)} of its tokens are ${unkToken}: the tokenizer does not know that text.`)
  return problems
}

function countUnknown(ids: Int32Array, tokenizer: Tokenizer, unkToken: string): number {
  const [id] = tokenizer.encode(unkToken)
  // Where one token has several tasks, as GPT-2's <|endoftext|>, it says nothing about the text.
  const alone =
    id !== undefined && tokenizer.specialIds.has(id) && ![tokenizer.bosId, tokenizer.padId, ...tokenizer.eosIds].includes(id)
  return alone ? ids.reduce((count, other) => count + Number(other === id), 0) : 0
}
