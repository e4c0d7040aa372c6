import { randomUUID } from 'node:crypto'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import * as vscode from 'vscode'
import { describeError, UnslothError } from '#shared/errors.ts'
import { engineRequests, type GeneratedText } from '#shared/protocol.ts'
import { RunDirectory } from '../../engine/run/runDirectory.ts'
import type { Services } from '../services.ts'
import { pathOf } from '../trees/nodes.ts'
import { adapterOf } from './merge.ts'
import { cancelled, choose, pickModel, runChoice } from './pick.ts'
import { sideBySide } from './sideBySide.ts'

const seed = 3407
const maxNewTokens = 200
/** Milliseconds between two updates of the document. */
const pace = 100

interface Source {
  readonly title: string
  readonly model: string
  /** With one, the base model's text stands beside its text. */
  readonly adapter?: string
}

interface Column {
  readonly title: string
  text: string
  note: string
}

/** Writes text with a model; of an adapter or a run, base and tuned side by side, from the same seed, both as they come. */
export async function generate(services: Services, argument: unknown, given: string | undefined): Promise<void> {
  const source = await pickSource(services, argument)
  const prompt =
    typeof given === 'string'
      ? given
      : await vscode.window.showInputBox({
          title: vscode.l10n.t('Generate'),
          prompt: vscode.l10n.t('The beginning of the text'),
          value: services.extension.workspaceState.get('prompt', 'Once upon a time'),
          ignoreFocusOut: true,
        })
  if (prompt === undefined || prompt === '') throw cancelled()
  await services.extension.workspaceState.update('prompt', prompt)
  const titles = source.adapter === undefined ? [source.title] : [vscode.l10n.t('base'), source.title]
  const columns = titles.map((title): Column => ({ title, text: '', note: vscode.l10n.t('waiting') }))
  const uri = await services.reports.show(`${source.title}.txt`, render(prompt, columns))
  await vscode.window.withProgress({ location: vscode.ProgressLocation.Window, title: vscode.l10n.t('Generating') }, () =>
    stream(services, uri, prompt, source, columns),
  )
}

/** Fills the columns of a document; closing it cancels. */
async function stream(
  { engine, reports }: Services,
  uri: vscode.Uri,
  prompt: string,
  source: Source,
  columns: readonly Column[],
): Promise<void> {
  const { model, adapter } = source
  const own = columns.at(-1)!
  const controller = new AbortController()
  const id = randomUUID()
  let timer: NodeJS.Timeout | undefined
  let began = false
  const show = (): void => {
    clearTimeout(timer)
    timer = undefined
    if (!reports.update(uri, render(prompt, columns))) controller.abort()
  }
  const subscription = engine.onGenerated(id, ({ text, base = false }) => {
    const column = base ? columns[0]! : own
    column.text += text
    if (began) timer ??= setTimeout(show, pace)
    else {
      began = true
      for (const each of columns) each.note = vscode.l10n.t('writing')
      show()
    }
  })
  try {
    const result = await engine.request(
      engineRequests.generate,
      {
        id,
        model,
        prompt,
        sampling: { seed, maxNewTokens, temperature: 0.7 },
        ...(adapter === undefined ? {} : { adapter, withBase: true }),
      },
      { signal: controller.signal },
    )
    for (const [column, made] of [
      [columns[0]!, result.base],
      [own, result],
    ] as const) {
      if (made !== undefined) Object.assign(column, { text: made.text, note: noteOf(made) })
    }
  } catch (error) {
    if (UnslothError.is(error, 'STOPPED')) return
    for (const column of columns) column.note = describeError(error)
    throw error
  } finally {
    subscription.dispose()
    show()
  }
}

function noteOf({ newTokens, seconds, stopReason }: GeneratedText): string {
  const speed = seconds > 0 ? `, ${Math.round(newTokens / seconds)} tokens/s` : ''
  return `${newTokens} tokens${speed}${stopReason === 'length' ? ', cut' : ''}`
}

function render(prompt: string, columns: readonly Column[]): string {
  const head = `Prompt: ${prompt}\nSeed ${seed}, temperature 0.7\n`
  const shown = columns.map(({ title, note, text }) => ({ title: `${title} (${note})`, text: `${prompt}${text}` }))
  return `${head}\n${shown.length === 1 ? `${shown[0]!.title}\n${'─'.repeat(58)}\n${shown[0]!.text}` : sideBySide(shown[0]!, shown[1]!)}\n`
}

async function pickSource(services: Services, argument: unknown): Promise<Source> {
  const named = pathOf(argument)
  if (named !== undefined) return sourceOf(named)
  const runs = services.runs.views
    .filter(({ dir }) => resultOf(dir) !== undefined)
    .map((view) => ({ ...runChoice(view), path: view.dir }))
  if (runs.length > 0) {
    const model = { label: vscode.l10n.t('A model…'), path: undefined, iconPath: new vscode.ThemeIcon('symbol-structure') }
    const { path } = await choose([...runs, model], {
      title: vscode.l10n.t('Generate'),
      placeHolder: vscode.l10n.t('With which run?'),
    })
    if (path !== undefined) return sourceOf(path)
  }
  const { path, kind, name } = await pickModel(services, undefined, vscode.l10n.t('Generate'))
  return kind === 'adapter' ? sourceOf(path) : { title: name, model: path }
}

/** What a run has made: its adapter or newest checkpoint, else its merged model. */
const resultOf = (run: string): string | undefined =>
  adapterOf(run) ?? ['merged'].map((name) => join(run, name)).find((path) => existsSync(path))

async function sourceOf(path: string): Promise<Source> {
  const result = RunDirectory.isRun(path) ? resultOf(path) : path
  if (result === undefined)
    throw new UnslothError('RUN_INVALID', `${path}: this run has saved nothing yet.`, {
      hint: 'Wait for its first checkpoint, or for its end.',
    })
  const config = join(result, 'adapter_config.json')
  if (!existsSync(config)) return { title: basename(result), model: result }
  const base = (JSON.parse(await readFile(config, 'utf8')) as { base_model_name_or_path?: unknown }).base_model_name_or_path
  if (typeof base !== 'string')
    throw new UnslothError('FILE_FORMAT', `${config} does not name the base model.`, { hint: 'Add base_model_name_or_path.' })
  const title = basename(result) === 'adapter' ? basename(dirname(result)) : basename(result)
  return { title: vscode.l10n.t('tuned: {0}', title), model: base, adapter: result }
}
