import { readdir } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import * as vscode from 'vscode'
import { runFiles } from '../../engine/run/runFiles.ts'
import { debounce, Disposables, readSetting } from '../editor.ts'
import type { RunRegistry } from './runRegistry.ts'

const rememberedKey = 'runs'
const liveKey = 'liveRuns'
const maxRemembered = 200

/** Where runs are looked for: in the workspace, in folders of the settings, and where runs were started from here before. */
export class RunPlaces {
  readonly #state: vscode.Memento

  constructor(state: vscode.Memento) {
    this.#state = state
  }

  async find(): Promise<string[]> {
    const inWorkspace = vscode.workspace.findFiles(`**/${runFiles.status}`, '**/{node_modules,checkpoints,.git}/**', 5_000)
    const listed = readSetting('unsloth.runFolders').map(async (folder) =>
      (await readdir(folder).catch(() => [])).map((name) => join(folder, name)),
    )
    const [found, ...others] = await Promise.all([inWorkspace, ...listed])
    return [
      ...new Set([
        ...found.filter(({ scheme }) => scheme === 'file').map(({ fsPath }) => dirname(fsPath)),
        ...others.flat(),
        ...this.#remembered(),
      ]),
    ]
  }

  /** Keeps a run outside the workspace in the list. */
  async remember(dir: string): Promise<void> {
    if (vscode.workspace.getWorkspaceFolder(vscode.Uri.file(dir)) !== undefined) return
    await this.#state.update(rememberedKey, [dir, ...this.#remembered().filter((other) => other !== dir)].slice(0, maxRemembered))
  }

  /** Runs that were going on when this window last looked. */
  get wereLive(): readonly string[] {
    return this.#state.get<string[]>(liveKey, [])
  }

  keepLive(dirs: readonly string[]): void {
    if (dirs.join('\n') !== this.wereLive.join('\n')) void this.#state.update(liveKey, dirs)
  }

  #remembered(): string[] {
    return this.#state.get<string[]>(rememberedKey, [])
  }
}

/** Has the registry look again when runs come, go, or are continued by somebody else. */
export function watchRuns(runs: RunRegistry): vscode.Disposable {
  const parts = new Disposables()
  const watcher = parts.add(vscode.workspace.createFileSystemWatcher(`**/${runFiles.status}`))
  const look = parts.add(debounce(300, () => void runs.refresh()))
  const follow = ({ fsPath }: vscode.Uri): void => {
    const dir = dirname(fsPath)
    if (basename(dir) !== runFiles.checkpoints && !runs.isFollowed(dir)) void runs.follow(dir)
  }
  watcher.onDidCreate(follow)
  watcher.onDidChange(follow)
  watcher.onDidDelete(look)
  parts.add(vscode.workspace.onDidChangeWorkspaceFolders(look))
  parts.add(vscode.workspace.onDidChangeConfiguration((event) => event.affectsConfiguration('unsloth.runFolders') && look()))
  return parts
}
