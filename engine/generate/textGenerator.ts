import { UnslothError } from '#shared/errors.ts'
import { StreamDecoder } from '../data/streamDecoder.ts'
import type { Tokenizer } from '../data/tokenizer.ts'
import type { LoadedModel } from '../runtime/loadedModel.ts'
import { Generator } from './generator.ts'
import { checkSampling, type SamplingOptions } from './sampler.ts'
import { StopMatcher } from './stopMatcher.ts'

export interface TextOptions {
  readonly maxNewTokens: number
  readonly sampling: SamplingOptions
  readonly stop: readonly string[]
  /** Prompt and new tokens together, at most; the model's context when absent. */
  readonly maxLength?: number
  readonly seed: number
  /** The base model, though an adapter is loaded: for all prompts, or for each. */
  readonly base?: boolean | readonly boolean[]
  readonly onText?: (prompt: number, piece: string) => void
  readonly signal?: AbortSignal
}

export interface GeneratedText {
  readonly text: string
  readonly promptTokens: number
  readonly newTokens: number
  /** `end`: the model ended it; `stop`: a stop string; `length`: the limit of new tokens. */
  readonly reason: 'end' | 'stop' | 'length' | 'cancelled'
}

/** Text from text: a model with its tokenizer, and perhaps an adapter that can be switched off. */
export class TextGenerator {
  readonly tokenizer: Tokenizer
  readonly model: LoadedModel
  private readonly generators = new Map<string, Generator>()

  constructor(model: LoadedModel, tokenizer: Tokenizer) {
    this.model = model
    this.tokenizer = tokenizer
  }

  /** Completes each prompt, given as token ids. Prompts of one call run together; none depends on the others. */
  async complete(prompts: readonly Int32Array[], options: TextOptions): Promise<GeneratedText[]> {
    checkSampling(options.sampling)
    const context = Math.min(options.maxLength ?? Infinity, this.model.spec.context)
    const longest = Math.max(...prompts.map(({ length }) => length))
    if (longest >= context)
      throw new UnslothError('USAGE', `The prompt has ${longest} tokens; there is room for ${context}.`, {
        hint: 'Shorten the prompt.',
      })
    // Each by itself, so that a long neighbour shortens no text.
    const limits = prompts.map(({ length }) => Math.min(options.maxNewTokens, context - length))
    const maxLength = Math.max(...prompts.map(({ length }, prompt) => length + limits[prompt]!))
    const decoders = prompts.map((ids) => new StreamDecoder(this.tokenizer, { prompt: ids }))
    const matchers = prompts.map(() => new StopMatcher(options.stop))
    const texts = prompts.map(() => '')
    const tokens = prompts.map(() => 0)
    const show = (prompt: number, piece: string) => {
      if (piece === '') return
      texts[prompt] += piece
      options.onText?.(prompt, piece)
    }
    const { base = false } = options
    const isBase = prompts.map((_, prompt) => (typeof base === 'boolean' ? base : base[prompt] === true))
    const voices = [...new Set(isBase)]
    await this.generator(voices, prompts.length, Math.min(2 ** Math.ceil(Math.log2(maxLength)), context)).generate(
      prompts.map((ids, prompt) => ({
        ids,
        seed: options.seed,
        maxNewTokens: limits[prompt]!,
        voice: voices.indexOf(isBase[prompt]!),
      })),
      {
        maxNewTokens: options.maxNewTokens,
        sampling: options.sampling,
        stopIds: new Set(this.tokenizer.eosIds),
        ...(options.signal === undefined ? {} : { signal: options.signal }),
        onToken: (prompt, id) => {
          ++tokens[prompt]!
          show(prompt, matchers[prompt]!.push(decoders[prompt]!.push(id)))
          return matchers[prompt]!.matched
        },
      },
    )
    return prompts.map((ids, prompt) => {
      const matcher = matchers[prompt]!
      show(prompt, matcher.push(matcher.matched ? '' : decoders[prompt]!.end()))
      show(prompt, matcher.end())
      const reason = matcher.matched
        ? 'stop'
        : tokens[prompt] === limits[prompt]
          ? 'length'
          : options.signal?.aborted === true
            ? 'cancelled'
            : 'end'
      return { text: texts[prompt]!, promptTokens: ids.length, newTokens: tokens[prompt]!, reason }
    })
  }

  /** Plans are kept for the next call: sizes are powers of two, so that there are few. */
  private generator(voices: readonly boolean[], batch: number, maxLength: number): Generator {
    const key = `${voices.join()}.${batch}.${maxLength}`
    const known = this.generators.get(key)
    if (known !== undefined) return known
    const made = new Generator(
      this.model,
      voices.map((base) => (base ? this.model.base : this.model.trained)),
      { batch, maxLength },
    )
    this.generators.set(key, made)
    return made
  }

  dispose(): void {
    this.model.runtime.dispose()
  }
}
