import { existsSync, statSync } from 'node:fs'
import { join, resolve } from 'node:path'
import * as vscode from 'vscode'
import { describeError } from '#shared/errors.ts'
import { formatCount } from '#shared/units.ts'
import { runFiles } from '../../engine/run/runFiles.ts'
import { RunReader, type RunView } from '../../engine/run/runReader.ts'
import type { RunRegistry } from '../engine/runRegistry.ts'
import type { Fact, Library, LibraryModel } from './library.ts'
import { lossSamples } from './lossSamples.ts'
import type { TreeNode } from './nodes.ts'
import { checkpointItem, datasetItem, factItem, modelItem, outputItem, runItem } from './treeItems.ts'

abstract class Provider implements vscode.TreeDataProvider<TreeNode> {
  readonly #changed = new vscode.EventEmitter<TreeNode | undefined>()
  readonly onDidChangeTreeData = this.#changed.event

  refresh(node?: TreeNode): void {
    this.#changed.fire(node)
  }

  abstract getChildren(node?: TreeNode): Promise<TreeNode[]>
  abstract getTreeItem(node: TreeNode): vscode.TreeItem | Promise<vscode.TreeItem>
}

const problemNode = (path: string, error: unknown): TreeNode => ({
  kind: 'fact',
  path: `${path}#problem`,
  label: vscode.l10n.t('Not readable'),
  value: describeError(error).split('\n')[0]!,
  problem: true,
})
const factNodes = (path: string, facts: readonly Fact[]): TreeNode[] =>
  facts.map(({ label, value }) => ({ kind: 'fact', path: `${path}#${label}`, label, value }))
const modelNode = (model: LibraryModel): TreeNode => ({ kind: 'model', path: model.path, model })

export class ModelsProvider extends Provider {
  readonly #library: Library

  constructor(library: Library) {
    super()
    this.#library = library
    library.onDidChange(() => this.refresh())
  }

  async getChildren(node?: TreeNode): Promise<TreeNode[]> {
    if (node === undefined) return (await this.#library.models()).map(modelNode)
    if (node.kind !== 'model') return []
    const [facts, adapters] = await Promise.all([
      this.#library.modelFacts(node.model).then(
        (found) => factNodes(node.path, found),
        (error: unknown) => [problemNode(node.path, error)],
      ),
      this.#library.adaptersOf(node.model),
    ])
    return [...facts, ...adapters.map((model): TreeNode => ({ kind: 'model', path: model.path, model }))]
  }

  getTreeItem(node: TreeNode): vscode.TreeItem {
    if (node.kind === 'model') return modelItem(node)
    return factItem(node as TreeNode & { kind: 'fact' })
  }
}

export class DatasetsProvider extends Provider {
  readonly #library: Library

  constructor(library: Library) {
    super()
    this.#library = library
    library.onDidChange(() => this.refresh())
  }

  async getChildren(node?: TreeNode): Promise<TreeNode[]> {
    if (node === undefined) {
      return (await this.#library.datasets())
        .filter(({ origin }) => origin === 'workspace')
        .map((dataset) => ({ kind: 'dataset', path: dataset.path, dataset }))
    }
    if (node.kind !== 'dataset') return []
    try {
      const { rows, exact, columns, format, problem } = await this.#library.tableFacts(node.path)
      const facts = [
        { label: vscode.l10n.t('Rows'), value: exact ? formatCount(rows) : vscode.l10n.t('about {0}', formatCount(rows)) },
        { label: vscode.l10n.t('Columns'), value: columns.join(', ') },
        { label: vscode.l10n.t('Format'), value: format },
      ]
      return [...factNodes(node.path, facts), ...(problem === undefined ? [] : [problemNode(node.path, new Error(problem))])]
    } catch (error) {
      return [problemNode(node.path, error)]
    }
  }

  async getTreeItem(node: TreeNode): Promise<vscode.TreeItem> {
    if (node.kind !== 'dataset') return factItem(node as TreeNode & { kind: 'fact' })
    return datasetItem(node, await this.#library.tableFacts(node.path).catch(() => undefined))
  }
}

export class RunsProvider extends Provider {
  readonly #runs: RunRegistry
  readonly #nodes = new Map<string, TreeNode & { kind: 'run' }>()
  readonly #losses = new Map<string, { stamp: string; values: readonly number[] }>()

  constructor(runs: RunRegistry) {
    super()
    this.#runs = runs
    runs.onDidChange((dir) => {
      const view = dir === undefined ? undefined : runs.get(dir)
      const node = view === undefined ? undefined : this.#nodes.get(view.dir)
      if (view === undefined || node === undefined) this.refresh()
      else this.refresh(this.#node(view))
    })
  }

  getChildren(node?: TreeNode): Promise<TreeNode[]> {
    return Promise.resolve(
      node === undefined ? this.#runs.views.map((view) => this.#node(view)) : node.kind === 'run' ? partsOf(node.view) : [],
    )
  }

  async getTreeItem(node: TreeNode): Promise<vscode.TreeItem> {
    if (node.kind === 'checkpoint') return checkpointItem(node)
    if (node.kind === 'output') return outputItem(node)
    if (node.kind !== 'run') return factItem(node as TreeNode & { kind: 'fact' })
    const view = this.#runs.get(node.path) ?? node.view
    return runItem({ ...node, view }, await this.#lossesOf(view))
  }

  /** One object for each run: the tree updates the row of the node that it knows. */
  #node(view: RunView): TreeNode {
    const known = this.#nodes.get(view.dir)
    const node = Object.assign(known ?? { kind: 'run' as const, path: view.dir }, { view })
    this.#nodes.set(view.dir, node)
    return node
  }

  async #lossesOf({ dir }: RunView): Promise<readonly number[]> {
    const path = join(dir, runFiles.metrics)
    const found = statSync(path, { throwIfNoEntry: false })
    const stamp = `${found?.size}:${found?.mtimeMs}`
    const known = this.#losses.get(dir)
    if (known?.stamp === stamp) return known.values
    const values = await lossSamples(path)
    this.#losses.set(dir, { stamp, values })
    return values
  }
}

/** Outputs that are there, then checkpoints, newest first. */
function partsOf({ dir, status }: RunView): TreeNode[] {
  const outputs = status.outputs
    .map((output): TreeNode => ({ kind: 'output', path: resolve(dir, output.path), output, run: dir }))
    .filter(({ path }) => existsSync(path))
  const checkpoints = new RunReader(dir)
    .checkpoints()
    .reverse()
    .map((checkpoint): TreeNode => ({ kind: 'checkpoint', path: checkpoint.path, checkpoint, run: dir }))
  const parts = [...outputs, ...checkpoints]
  return parts.length > 0 ? parts : [{ kind: 'fact', path: `${dir}#empty`, label: vscode.l10n.t('Nothing saved yet'), value: '' }]
}
