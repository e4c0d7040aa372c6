import { readFile } from 'node:fs/promises'
import { text } from 'node:stream/consumers'
import { UnslothError } from '#shared/errors.ts'
import { chatTemplateFor, encodeRendered } from '../../data/chatTemplate.ts'
import type { Tokenizer } from '../../data/tokenizer.ts'
import { FastLanguageModel } from '../../fastLanguageModel.ts'
import type { CommandArgs } from '../commandArgs.ts'
import { progressView } from '../progressView.ts'
import { runResult } from '../runResult.ts'
import { computeSettings } from '../settings.ts'

/** Writes text with a model, an adapter or a run's result. One prompt streams; several run as one batch. */
export async function generateCommand({ positionals, flags }: CommandArgs<'generate'>): Promise<number> {
  const [name, ...words] = positionals
  const prompts = await readPrompts(words, flags.prompt_file)
  const view = progressView(process.stderr)
  const generator = await FastLanguageModel.forInference({
    modelName: runResult(name!),
    adapter: flags.adapter,
    ...computeSettings(flags),
    onDownload: (progress) => view.onDownload?.(progress),
  })
  view.end()
  const abort = new AbortController()
  const interrupt = () => abort.abort()
  process.once('SIGINT', interrupt)
  try {
    const ids = prompts.map((prompt) => encodePrompt(generator.tokenizer, prompt, flags))
    const streams = prompts.length === 1 && !flags.json
    if (streams && !flags.chat) process.stdout.write(prompts[0]!)
    const sampling = {
      temperature: flags.greedy ? 0 : flags.temperature,
      topK: Math.max(0, flags.top_k),
      topP: flags.top_p === 0 ? 1 : flags.top_p,
      minP: flags.min_p,
      repetitionPenalty: flags.repetition_penalty,
    }
    const began = performance.now()
    const results = await generator.complete(ids, {
      maxNewTokens: flags.max_new_tokens,
      sampling,
      stop: flags.stop ?? [],
      seed: flags.seed,
      signal: abort.signal,
      ...(flags.max_seq_length === undefined ? {} : { maxLength: flags.max_seq_length }),
      ...(streams ? { onText: (_prompt: number, piece: string) => process.stdout.write(piece) } : {}),
    })
    const seconds = (performance.now() - began) / 1000
    if (flags.json)
      console.log(JSON.stringify({ seconds, results: results.map((result, i) => ({ prompt: prompts[i], ...result })) }, null, 2))
    else if (streams) process.stdout.write('\n')
    else results.forEach((result, i) => console.log(`--- ${i + 1}\n${flags.chat ? '' : prompts[i]!}${result.text}`))
    return 0
  } finally {
    process.removeListener('SIGINT', interrupt)
    generator.dispose()
  }
}

async function readPrompts(words: readonly string[], file: string | undefined): Promise<string[]> {
  if (file !== undefined) return [...words, file === '-' ? await text(process.stdin) : await readFile(file, 'utf8')]
  if (words.length > 0) return [...words]
  throw new UnslothError('USAGE', 'There is no prompt.', { hint: 'Write it after the model, or name a file with --prompt-file.' })
}

function encodePrompt(
  tokenizer: Tokenizer,
  prompt: string,
  flags: { readonly chat: boolean; readonly system?: string | undefined },
): Int32Array {
  if (!flags.chat) return tokenizer.encode(prompt, { addSpecialTokens: true })
  const messages = [
    ...(flags.system === undefined ? [] : [{ role: 'system', content: flags.system }]),
    { role: 'user', content: prompt },
  ]
  return encodeRendered(tokenizer, chatTemplateFor(tokenizer).render(messages, { addGenerationPrompt: true }))
}
