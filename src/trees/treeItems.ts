import * as vscode from 'vscode'
import { formatLoss } from '#shared/metrics.ts'
import { formatBytes, formatCount, formatDuration } from '#shared/units.ts'
import { contextValue, type NodeKind } from '../contributions.ts'
import { asCommand } from '../editor.ts'
import { progressText, sparkline, stateIcons } from '../status/runText.ts'
import type { RunView } from '../../engine/run/runReader.ts'
import type { TreeNode } from './nodes.ts'
import type { TableFacts } from './tableFacts.ts'

const stateColors: Partial<Record<RunView['state'], string>> = {
  finished: 'testing.iconPassed',
  failed: 'testing.iconFailed',
  interrupted: 'list.warningForeground',
  paused: 'list.warningForeground',
}

/** A path as the editor shows files: its last part, and the folder behind it. */
function labelOf(name: string, isPath: boolean): { readonly label: string; readonly folder: string } {
  const end = isPath ? name.lastIndexOf('/') : -1
  return { label: name.slice(end + 1), folder: name.slice(0, Math.max(0, end)) }
}

/** What a row looks like, from what is known about it. */
export function modelItem({ model, path }: TreeNode & { kind: 'model' }): vscode.TreeItem {
  const { label, folder } = labelOf(model.name, model.origin === 'workspace')
  const item = new vscode.TreeItem(label, vscode.TreeItemCollapsibleState.Collapsed)
  const origin = { workspace: '', 'hub cache': vscode.l10n.t('Hub cache'), bundled: vscode.l10n.t('starter') }[model.origin]
  const what = { model: '', adapter: vscode.l10n.t('adapter'), gguf: 'GGUF' }[model.kind]
  item.id = `model:${path}`
  item.description = [what, origin, folder, formatBytes(model.bytes)].filter((part) => part !== '').join(' · ')
  item.iconPath = new vscode.ThemeIcon({ model: 'symbol-structure', adapter: 'plug', gguf: 'package' }[model.kind])
  item.contextValue = contextValue(model.kind)
  item.tooltip = path
  item.resourceUri = vscode.Uri.file(path)
  return item
}

export function factItem({ path, label, value, problem }: TreeNode & { kind: 'fact' }): vscode.TreeItem {
  const item = new vscode.TreeItem(label)
  item.id = `fact:${path}`
  item.description = value
  item.tooltip = `${label}: ${value}`
  if (problem === true) item.iconPath = new vscode.ThemeIcon('warning')
  return item
}

export function datasetItem({ dataset, path }: TreeNode & { kind: 'dataset' }, facts: TableFacts | undefined): vscode.TreeItem {
  const { label, folder } = labelOf(dataset.name, true)
  const item = new vscode.TreeItem(label, vscode.TreeItemCollapsibleState.Collapsed)
  const rows = facts === undefined ? '' : vscode.l10n.t('{0} rows', `${facts.exact ? '' : '~'}${formatCount(facts.rows)}`)
  item.id = `dataset:${path}`
  item.description = [folder, rows, facts?.format ?? '', formatBytes(dataset.bytes)].filter((part) => part !== '').join(' · ')
  item.iconPath = new vscode.ThemeIcon(facts?.problem === undefined ? 'database' : 'warning')
  item.contextValue = contextValue('dataset')
  item.tooltip = facts?.problem === undefined ? path : `${path}\n${facts.problem}`
  item.resourceUri = vscode.Uri.file(path)
  item.command = asCommand('unsloth.openDataset', vscode.l10n.t('Open'), path)
  return item
}

/** Words for the menus of a run. */
export function runKinds({ state, alive, resumable }: RunView): NodeKind[] {
  const kinds: NodeKind[] = ['run']
  if (alive) kinds.push('live')
  if (state === 'paused' && alive) kinds.push('paused')
  if (resumable) kinds.push('resumable')
  if (!alive && state !== 'queued') kinds.push('ended')
  if (state === 'finished') kinds.push('finished')
  return kinds
}

export function runItem({ view, path }: TreeNode & { kind: 'run' }, losses: readonly number[]): vscode.TreeItem {
  const { status, state } = view
  const item = new vscode.TreeItem(status.name, vscode.TreeItemCollapsibleState.Collapsed)
  const color = stateColors[state]
  item.id = `run:${path}`
  item.description = runDescription(view, losses)
  item.iconPath = new vscode.ThemeIcon(stateIcons[state], color === undefined ? undefined : new vscode.ThemeColor(color))
  item.contextValue = contextValue(...runKinds(view))
  item.tooltip = runTooltip(view)
  item.command = asCommand('unsloth.openTrainingPanel', vscode.l10n.t('Open Training Panel'), path)
  item.accessibilityInformation = {
    label: `${status.name}, ${state}, ${view.alive ? progressText(view) : status.loss === null ? '' : `loss ${formatLoss(status.loss)}`}`,
  }
  return item
}

/** `▇▅▃▂▁ 1.732 · 3 m ago`; of a living run how far it is. */
export function runDescription(view: RunView, losses: readonly number[], now = Date.now()): string {
  const { status, state, alive } = view
  // Short, so that the figure behind it is seen in a narrow side bar.
  const curve = sparkline(losses, 8)
  if (alive) return [curve, progressText(view)].filter((part) => part !== '').join(' ')
  const last = losses.at(-1) ?? status.loss
  const ended = Date.parse(status.endedAt ?? status.updatedAt)
  const when = vscode.l10n.t('{0} ago', formatDuration(Math.max(1, (now - ended) / 1000)))
  return [
    [curve, last === null || last === undefined ? '' : formatLoss(last)].filter(Boolean).join(' '),
    state === 'finished' ? '' : state,
    when,
  ]
    .filter((part) => part !== '')
    .join(' · ')
}

function runTooltip({ dir, status, state }: RunView): vscode.MarkdownString {
  const lines = [
    `**${escape(status.name)}** ${state}`,
    escape(status.detail ?? ''),
    escape(status.model ?? ''),
    escape(status.dataset ?? ''),
    status.totalSteps === null ? '' : vscode.l10n.t('step {0} of {1}', formatCount(status.step), formatCount(status.totalSteps)),
    status.evalLoss === null ? '' : vscode.l10n.t('eval loss {0}', formatLoss(status.evalLoss)),
    escape(status.error?.message ?? ''),
    `\`${dir}\``,
  ]
  return new vscode.MarkdownString(lines.filter((line) => line !== '').join('  \n'))
}

const escape = (text: string): string => text.replaceAll(/[\\`*_{}[\]<>()#+!|~-]/g, '\\$&')

export function checkpointItem({ checkpoint, path }: TreeNode & { kind: 'checkpoint' }): vscode.TreeItem {
  const item = new vscode.TreeItem(vscode.l10n.t('Checkpoint at step {0}', formatCount(checkpoint.step)))
  const loss = checkpoint.evalLoss ?? checkpoint.loss
  item.id = `checkpoint:${path}`
  item.description = [
    loss === null ? '' : `${checkpoint.evalLoss === null ? 'loss' : 'eval loss'} ${formatLoss(loss)}`,
    formatBytes(checkpoint.bytes),
  ]
    .filter((part) => part !== '')
    .join(' · ')
  item.iconPath = new vscode.ThemeIcon('save')
  item.contextValue = contextValue('checkpoint')
  item.tooltip = path
  return item
}

export function outputItem({ output, path }: TreeNode & { kind: 'output' }): vscode.TreeItem {
  const names: Readonly<Record<string, string>> = { adapter: vscode.l10n.t('Adapter'), merged: vscode.l10n.t('Merged model') }
  const item = new vscode.TreeItem(names[output.kind] ?? output.kind)
  item.id = `output:${path}`
  item.iconPath = new vscode.ThemeIcon(output.kind === 'adapter' ? 'plug' : 'symbol-structure')
  item.contextValue = contextValue('output', output.kind === 'adapter' ? 'adapter' : 'model')
  item.tooltip = path
  item.command = asCommand('unsloth.inspectModel', vscode.l10n.t('Inspect'), path)
  return item
}
