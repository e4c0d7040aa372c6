import * as vscode from 'vscode'
import { errorCodes, UnslothError, type ErrorCode } from '#shared/errors.ts'
import type { RunView } from '../../engine/run/runReader.ts'
import { runCommand } from '../editor.ts'

/** What a notification is about, as far as it is known: its button uses it. */
export interface ProblemContext {
  /** The recipe that was to run. */
  readonly recipe?: string
  readonly run?: string
}

interface Remedy {
  readonly label: string
  readonly act: (context: ProblemContext) => Thenable<unknown>
}

const openLog: Remedy = {
  label: vscode.l10n.t('Show Log'),
  act: ({ run }) => (run === undefined ? runCommand('unsloth.showEngineLog') : runCommand('unsloth.openRunLog', run)),
}
const openRecipe: Remedy = {
  label: vscode.l10n.t('Open Recipe'),
  act: ({ recipe, run }) =>
    recipe !== undefined
      ? vscode.window.showTextDocument(vscode.Uri.file(recipe))
      : run !== undefined
        ? runCommand('unsloth.openRunRecipe', run)
        : runCommand('unsloth.newRecipe'),
}
const dryRun: Remedy = { label: vscode.l10n.t('Show Memory Plan'), act: ({ recipe }) => runCommand('unsloth.dryRun', recipe) }
const doctor: Remedy = { label: vscode.l10n.t('Run Doctor'), act: () => runCommand('unsloth.doctor') }
const reveal: Remedy = { label: vscode.l10n.t('Open Panel'), act: ({ run }) => runCommand('unsloth.openTrainingPanel', run) }
const setToken: Remedy = { label: vscode.l10n.t('Set Token'), act: () => runCommand('unsloth.setHubToken') }
const preview: Remedy = { label: vscode.l10n.t('Preview Data'), act: ({ recipe }) => runCommand('unsloth.previewData', recipe) }
const resume: Remedy = { label: vscode.l10n.t('Resume'), act: ({ run }) => runCommand('unsloth.resumeRun', run) }

/** The one button of each error's notification; undefined where there is nothing to do but read. */
const remedies: Readonly<Record<ErrorCode, Remedy | undefined>> = {
  USAGE: undefined,
  RECIPE: openRecipe,
  FILE_NOT_FOUND: openRecipe,
  FILE_FORMAT: openLog,
  FILE_WRITE: openLog,
  MODEL_UNSUPPORTED: doctor,
  MODEL_INVALID: openLog,
  TOKENIZER: openLog,
  DATA: preview,
  MEMORY: dryRun,
  GPU: doctor,
  NON_FINITE: reveal,
  RUN_BUSY: reveal,
  RUN_INVALID: openLog,
  HUB: openRecipe,
  STOPPED: undefined,
  VERIFY: openLog,
  NATIVE: doctor,
  INTERNAL: openLog,
}

/** Tells what went wrong: one notification with at most one button, whose kind the error's code decides. */
export class Problems {
  readonly #log: vscode.LogOutputChannel
  /** Text that is on the screen now: the same failure from several places is told once. */
  readonly #shown = new Set<string>()

  constructor(log: vscode.LogOutputChannel) {
    this.#log = log
  }

  /** Never rejects, and does not wait for the user. Cancelling is not a problem. */
  show(error: unknown, context: ProblemContext = {}): void {
    if (UnslothError.is(error, 'STOPPED') || error instanceof vscode.CancellationError) return
    const code: ErrorCode = UnslothError.is(error) ? error.code : 'INTERNAL'
    const message = error instanceof Error ? error.message : String(error)
    this.#log.error(error instanceof Error && code === 'INTERNAL' ? (error.stack ?? message) : message)
    const hint = UnslothError.is(error) ? error.hint : undefined
    void this.#tell(code, hint === undefined ? message : `${message} ${hint}`, context, vscode.window.showErrorMessage)
  }

  /** The failure that a run left behind. */
  showFailedRun({ dir, status }: RunView): void {
    const { error, name } = status
    const code = errorCodes.find((known) => known === error?.code) ?? 'INTERNAL'
    const reason =
      error === null
        ? vscode.l10n.t('no reason was recorded')
        : error.hint === null
          ? error.message
          : `${error.message} ${error.hint}`
    void this.#tell(code, vscode.l10n.t('{0} failed: {1}', name, reason), { run: dir }, vscode.window.showErrorMessage)
  }

  /** A run whose process was lost. */
  showInterruptedRun({ dir, status, resumable, checkpoint }: RunView): void {
    const text = vscode.l10n.t('{0} was interrupted at step {1}: its process is gone.', status.name, status.step)
    if (!resumable)
      void this.#ask(
        `${text} ${vscode.l10n.t('There is no checkpoint to go on from.')}`,
        openLog,
        { run: dir },
        vscode.window.showWarningMessage,
      )
    else
      void this.#ask(
        `${text} ${vscode.l10n.t('It can go on from step {0}.', checkpoint?.step ?? 0)}`,
        resume,
        { run: dir },
        vscode.window.showWarningMessage,
      )
  }

  #tell(code: ErrorCode, text: string, context: ProblemContext, show: typeof vscode.window.showErrorMessage): Promise<void> {
    // Of the Hub's refusals, those of private and gated repositories speak of the token.
    const remedy = code === 'HUB' && /\btoken\b/i.test(text) ? setToken : remedies[code]
    return this.#ask(text, remedy, context, show)
  }

  async #ask(
    text: string,
    remedy: Remedy | undefined,
    context: ProblemContext,
    show: typeof vscode.window.showErrorMessage,
  ): Promise<void> {
    if (this.#shown.has(text)) return
    this.#shown.add(text)
    try {
      const chosen = await show(text, ...(remedy === undefined ? [] : [remedy.label]))
      if (chosen !== undefined) await remedy?.act(context)
    } catch (error) {
      this.#log.error(String(error))
    } finally {
      this.#shown.delete(text)
    }
  }
}
