import type * as vscode from 'vscode'

const key = 'unsloth.hubToken'

/**
 * The Hugging Face token that the user has given the editor. It stands in the editor's secret storage and goes to the engine's
 * processes in their environment, nowhere else: never into arguments, settings, recipes or logs.
 */
export class HubToken {
  readonly #secrets: vscode.SecretStorage

  constructor(secrets: vscode.SecretStorage) {
    this.#secrets = secrets
  }

  /** What a process of the engine gets besides its other variables. Another HF_TOKEN of the editor's environment gives way. */
  async environment(): Promise<Readonly<Record<string, string>>> {
    const token = await this.#secrets.get(key)
    return token === undefined || token === '' ? {} : { HF_TOKEN: token }
  }

  /** Keeps a token; an empty one removes what is kept. */
  async set(token: string): Promise<void> {
    if (token === '') await this.#secrets.delete(key)
    else await this.#secrets.store(key, token)
  }

  onDidChange(listener: () => void): vscode.Disposable {
    return this.#secrets.onDidChange((event) => {
      if (event.key === key) listener()
    })
  }
}

/** What is wrong with a text as a token; undefined when it may be one. */
export function tokenProblem(text: string): 'spaces' | 'short' | undefined {
  const token = text.trim()
  if (/\s/.test(token)) return 'spaces'
  return token !== '' && token.length < 8 ? 'short' : undefined
}
