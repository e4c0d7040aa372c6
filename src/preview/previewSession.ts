import { describeError, UnslothError } from '#shared/errors.ts'
import type { PreviewParams, PreviewResult } from '#shared/protocol.ts'
import { readLook, rowsOfWindow, samplesOfPage, type FromPreview, type ToPreview } from '#shared/previewPage.ts'

/** What is looked at: a recipe of the disk, or a text that stands for one, with some of its keys replaced. */
export interface PreviewedRecipe {
  readonly recipe: string
  readonly path: string
  readonly overrides?: Readonly<Record<string, unknown>>
}

/** What a session needs of its surroundings. */
export interface PreviewSessionOptions {
  readonly title: string
  /** Kept by the page, so that the panel can come back after a window reload. */
  readonly source: unknown
  readonly strings: Readonly<Record<string, string>>
  /** The recipe as it stands now, typed text included. */
  readonly read: () => Promise<PreviewedRecipe>
  readonly ask: (params: PreviewParams, signal: AbortSignal) => Promise<PreviewResult>
  readonly post: (message: ToPreview) => PromiseLike<unknown>
  readonly openRow: (file: string, line: number) => void
  readonly openRecipe: () => void
  readonly log: (message: string) => void
}

/** One preview's side in the host: asks the engine for what the page looks at; a newer question ends the one before. */
export class PreviewSession {
  readonly #options: PreviewSessionOptions
  /** Files that the last answer was about: only those may be opened. */
  readonly #files = new Set<string>()
  #running: AbortController | undefined
  #disposed = false

  constructor(options: PreviewSessionOptions) {
    this.#options = options
  }

  async handle(message: FromPreview): Promise<void> {
    const { strings, title, source, openRow, openRecipe, log } = this.#options
    switch (message.type) {
      case 'ready':
        await this.#post({ type: 'start', strings, title, source })
        return
      case 'look':
        await this.#look(message.request, readLook(message.look))
        return
      case 'open':
        if (this.#files.has(message.file) && Number.isSafeInteger(message.line)) openRow(message.file, Math.max(1, message.line))
        return
      case 'openRecipe':
        openRecipe()
        return
      case 'trouble':
        log(`The preview of data: ${message.message}`)
        return
    }
  }

  /** Recipe or data have changed. */
  changed(): void {
    if (!this.#disposed) void this.#post({ type: 'changed' })
  }

  dispose(): void {
    this.#disposed = true
    this.#running?.abort()
  }

  async #look(request: number, look: ReturnType<typeof readLook>): Promise<void> {
    this.#running?.abort()
    const running = (this.#running = new AbortController())
    try {
      const recipe = await this.#options.read()
      if (running.signal.aborted) return
      const { from, search, filter, order, firstRow } = look
      const {
        diagnostics,
        preview,
        matching = 0,
        more = false,
      } = await this.#options.ask(
        { ...recipe, from, count: samplesOfPage, rows: rowsOfWindow, firstRow, search, filter, order },
        running.signal,
      )
      if (running.signal.aborted) return
      for (const { file } of preview?.shown ?? []) this.#files.add(file)
      await this.#post({
        type: 'answer',
        request,
        look,
        diagnostics,
        ...(preview === undefined ? {} : { preview }),
        matching,
        more,
      })
    } catch (error) {
      if (running.signal.aborted || UnslothError.is(error, 'STOPPED')) return
      await this.#post({ type: 'failed', request, message: describeError(error) })
    }
  }

  async #post(message: ToPreview): Promise<void> {
    if (this.#disposed) return
    try {
      await this.#options.post(message)
    } catch (error) {
      this.#options.log(describeError(error))
    }
  }
}
