import type { Tokenizer } from './tokenizer.ts'

const replacements = /\ufffd+$/

/**
 * Text of generated tokens as they come. What may still change, a character whose bytes are spread over several tokens, is held
 * back until it is whole. The pieces joined are the text that `decode` gives for prompt and tokens together, less the prompt;
 * only bytes that never become a character may show as another number of U+FFFD.
 */
export class StreamDecoder {
  private readonly tokenizer: Tokenizer
  private readonly skipSpecialTokens: boolean
  /** Tokens that the next one may join with, and how much of their text has been given out. */
  private window: number[]
  private shown: number

  /** `prompt`: ids before the first token, so that a leading space of a word survives. */
  constructor(tokenizer: Tokenizer, { skipSpecialTokens = true, prompt = [] as ArrayLike<number> } = {}) {
    this.tokenizer = tokenizer
    this.skipSpecialTokens = skipSpecialTokens
    this.window = Array.from(prompt)
    this.shown = this.text().length
    this.shrink()
  }

  /** The text that is certain now and was not before; may be empty. */
  push(id: number): string {
    this.window.push(id)
    const text = this.text()
    const whole = text.replace(replacements, '')
    const piece = whole.slice(this.shown)
    this.shown = Math.max(this.shown, whole.length)
    if (whole.length === text.length) this.shrink()
    return piece
  }

  /** What was held back, when no more tokens come. */
  end(): string {
    const piece = this.text().slice(this.shown)
    this.shown += piece.length
    return piece
  }

  private text(ids: readonly number[] = this.window): string {
    return this.tokenizer.decode(ids, { skipSpecialTokens: this.skipSpecialTokens })
  }

  /** Keeps the last token only, when it is text of its own. */
  private shrink(): void {
    const last = this.window.slice(-1)
    const text = this.text(last)
    if (text === '' || text.includes('\ufffd')) return
    this.window = last
    this.shown = text.length
  }
}
