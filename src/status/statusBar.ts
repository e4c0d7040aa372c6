import * as vscode from 'vscode'
import { formatBytes, formatCount } from '#shared/units.ts'
import type { RunView } from '../../engine/run/runReader.ts'
import { asCommand, commandLink } from '../editor.ts'
import type { EngineState } from '../engine/lifecycle.ts'
import type { Services } from '../services.ts'
import { progressText, stateIcons } from './runText.ts'

/** Milliseconds for which a finished run stays in the status bar. */
const lingering = 60_000

/** The state of training and of the engine in one item: the run that goes on, else how the last one ended, else the engine. */
export class StatusBar implements vscode.Disposable {
  readonly #services: Pick<Services, 'runs' | 'engine'>
  readonly #item: vscode.StatusBarItem
  readonly #subscriptions: { dispose(): void }[]
  #timer: NodeJS.Timeout | undefined

  constructor(services: Pick<Services, 'runs' | 'engine'>) {
    this.#services = services
    this.#item = vscode.window.createStatusBarItem('unsloth.status', vscode.StatusBarAlignment.Left, 10)
    this.#item.name = vscode.l10n.t('Unsloth')
    this.#subscriptions = [
      this.#item,
      services.runs.onDidChange(() => this.update()),
      services.engine.onDidChangeState(() => this.update()),
    ]
    this.update()
  }

  /** For tests: what stands there. */
  get text(): string {
    return this.#item.text
  }

  update(): void {
    clearTimeout(this.#timer)
    const { runs, engine } = this.#services
    const live = runs.live
    const shown = live.find(({ state }) => state === 'training' || state === 'evaluating' || state === 'saving') ?? live[0]
    const ended =
      shown === undefined ? runs.views.find(({ status }) => age(status.endedAt ?? status.updatedAt) < lingering) : undefined
    if (shown !== undefined) this.#showRun(shown, live.length)
    else if (engine.state.kind === 'crashed') this.#showEngine(engine.state)
    else if (ended !== undefined) {
      this.#showRun(ended, 0)
      this.#timer = setTimeout(() => this.update(), lingering)
      this.#timer.unref()
    } else this.#showEngine(engine.state)
  }

  dispose(): void {
    clearTimeout(this.#timer)
    for (const subscription of this.#subscriptions) subscription.dispose()
  }

  #showRun(view: RunView, live: number): void {
    const item = this.#item
    const more = live > 1 ? ` (+${live - 1})` : ''
    item.text = `$(${stateIcons[view.state]}) ${view.alive || view.state === 'queued' ? progressText(view) : `${view.status.name}: ${view.state}`}${more}`
    item.tooltip = runTooltip(view)
    item.backgroundColor =
      view.state === 'interrupted'
        ? new vscode.ThemeColor('statusBarItem.warningBackground')
        : view.state === 'failed'
          ? new vscode.ThemeColor('statusBarItem.errorBackground')
          : undefined
    item.command = asCommand('unsloth.openTrainingPanel', vscode.l10n.t('Open Training Panel'), view.dir)
    item.accessibilityInformation = { label: vscode.l10n.t('Unsloth: {0}, {1}', view.status.name, progressText(view)) }
    item.show()
  }

  #showEngine(state: EngineState): void {
    const item = this.#item
    item.command = asCommand('unsloth.fineTune', vscode.l10n.t('Fine-tune'))
    item.backgroundColor = undefined
    item.accessibilityInformation = undefined
    switch (state.kind) {
      case 'idle':
        item.text = '$(flame) Unsloth'
        item.tooltip = idleTooltip()
        break
      case 'starting':
        item.text = `$(loading~spin) ${vscode.l10n.t('Unsloth: starting')}`
        item.tooltip = vscode.l10n.t('The engine is starting')
        break
      case 'running':
        item.text = state.requests > 0 ? `$(loading~spin) ${vscode.l10n.t('Unsloth: working')}` : '$(flame) Unsloth'
        item.tooltip = idleTooltip()
        break
      case 'stopping':
        item.text = '$(flame) Unsloth'
        item.tooltip = vscode.l10n.t('The engine is stopping')
        break
      case 'crashed':
        item.text = `$(error) ${vscode.l10n.t('Unsloth: engine stopped')}`
        item.tooltip = trusted([state.error.message, state.error.hint ?? '', links()])
        item.backgroundColor = new vscode.ThemeColor('statusBarItem.errorBackground')
        item.command = asCommand('unsloth.showEngineLog', vscode.l10n.t('Show Engine Log'))
        break
    }
    item.show()
  }
}

const age = (time: string): number => Date.now() - Date.parse(time)

const links = (): string =>
  [
    commandLink('unsloth.showEngineLog', vscode.l10n.t('Show Log')),
    commandLink('unsloth.restartEngine', vscode.l10n.t('Restart Engine')),
    commandLink('unsloth.doctor', vscode.l10n.t('Doctor')),
  ].join(' · ')

function idleTooltip(): vscode.MarkdownString {
  return trusted([
    vscode.l10n.t('Fine-tune a model'),
    [
      commandLink('unsloth.newRecipe', vscode.l10n.t('New Recipe')),
      commandLink('unsloth.selectDevice', vscode.l10n.t('Select Device')),
      commandLink('unsloth.doctor', vscode.l10n.t('Doctor')),
    ].join(' · '),
  ])
}

function runTooltip(view: RunView): vscode.MarkdownString {
  const { dir, status, state, alive, resumable } = view
  const facts = [
    [vscode.l10n.t('State'), status.detail === null ? state : `${state}: ${status.detail}`],
    [vscode.l10n.t('Model'), status.model ?? ''],
    [vscode.l10n.t('Data set'), status.dataset ?? ''],
    [vscode.l10n.t('Device'), status.device ?? ''],
    [vscode.l10n.t('Tokens per second'), status.tokensPerSecond === null ? '' : formatCount(status.tokensPerSecond)],
    [vscode.l10n.t('Memory'), status.plannedBytes === null ? '' : formatBytes(status.plannedBytes)],
    [vscode.l10n.t('Problem'), status.error?.message ?? ''],
  ].filter(([, value]) => value !== '')
  const table = [
    '| | |',
    '|---|---|',
    ...facts.map(([name, value]) => `| ${name} | ${value?.replaceAll('|', '\\|').replaceAll('\n', ' ')} |`),
  ].join('\n')
  const actions = [commandLink('unsloth.openTrainingPanel', vscode.l10n.t('Open Panel'), dir)]
  if (alive && state === 'paused') actions.push(commandLink('unsloth.continueRun', vscode.l10n.t('Continue'), dir))
  else if (alive) actions.push(commandLink('unsloth.pauseRun', vscode.l10n.t('Pause'), dir))
  if (alive) actions.push(commandLink('unsloth.stopRun', vscode.l10n.t('Stop'), dir))
  if (resumable) actions.push(commandLink('unsloth.resumeRun', vscode.l10n.t('Resume'), dir))
  return trusted([`**${status.name}**`, table, actions.join(' · ')])
}

function trusted(paragraphs: readonly string[]): vscode.MarkdownString {
  const text = new vscode.MarkdownString(paragraphs.filter(Boolean).join('\n\n'), true)
  // Names of models and data are not ours: only the commands that stand here may be called.
  text.isTrusted = {
    enabledCommands: [
      'unsloth.openTrainingPanel',
      'unsloth.continueRun',
      'unsloth.pauseRun',
      'unsloth.stopRun',
      'unsloth.resumeRun',
      'unsloth.showEngineLog',
      'unsloth.restartEngine',
      'unsloth.doctor',
      'unsloth.newRecipe',
      'unsloth.selectDevice',
    ],
  }
  return text
}
