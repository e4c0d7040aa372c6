import { basename, dirname } from 'node:path'
import * as vscode from 'vscode'
import { formatCount } from '#shared/units.ts'
import { RunDirectory } from '../../engine/run/runDirectory.ts'
import { asCommand } from '../editor.ts'
import type { Library } from '../trees/library.ts'

/** Above a data set's first row: what it holds, a look at it as a model reads it, and a recipe that trains on it. */
export class DatasetLenses implements vscode.CodeLensProvider {
  readonly #library: Library

  constructor(library: Library) {
    this.#library = library
  }

  async provideCodeLenses({ uri }: vscode.TextDocument): Promise<vscode.CodeLens[]> {
    const { fsPath } = uri
    if (RunDirectory.isRun(dirname(fsPath))) return []
    const facts = await this.#library.tableFacts(fsPath).catch(() => undefined)
    if (facts === undefined || facts.columns.length === 0) return []
    const range = new vscode.Range(0, 0, 0, 0)
    const dataset = {
      kind: 'dataset',
      path: fsPath,
      dataset: { name: basename(fsPath), path: fsPath, bytes: 0, origin: 'workspace' },
    } as const
    const about = `${vscode.l10n.t('{0} rows', `${facts.exact ? '' : '~'}${formatCount(facts.rows)}`)} · ${facts.format}`
    return [
      new vscode.CodeLens(range, asCommand('unsloth.previewData', vscode.l10n.t('Preview data'), fsPath)),
      new vscode.CodeLens(range, asCommand('unsloth.newRecipe', vscode.l10n.t('New recipe'), dataset)),
      new vscode.CodeLens(range, { command: '', title: about }),
    ]
  }
}

/** Files of rows in text; rows of the others are seen in the tree and the preview. */
export const datasetSelector: vscode.DocumentSelector = { scheme: 'file', pattern: '**/*.{jsonl,ndjson}' }
