import * as vscode from 'vscode'
import { problemMatcher, recipeGlob, taskType } from '../contributions.ts'
import type { EngineLocation } from './location.ts'

/** A task of type `unsloth`, as tasks.json has it. */
interface UnslothTask extends vscode.TaskDefinition {
  readonly task: 'finetune' | 'dry-run' | 'doctor' | 'bench'
  readonly recipe?: string
  /** Keys of the recipe as flags. */
  readonly args?: readonly string[]
}

/** Tasks run the engine in a terminal: in the foreground, with its progress line and its exit code. */
export class UnslothTasks implements vscode.TaskProvider {
  readonly #locate: () => EngineLocation

  constructor(locate: () => EngineLocation) {
    this.#locate = locate
  }

  /** One fine-tuning task for each recipe of the workspace. */
  async provideTasks(): Promise<vscode.Task[]> {
    const recipes = await vscode.workspace.findFiles(recipeGlob, '**/{node_modules,outputs}/**', 100)
    return recipes.flatMap((uri) => {
      const folder = vscode.workspace.getWorkspaceFolder(uri)
      if (folder === undefined || uri.scheme !== 'file') return []
      const recipe = vscode.workspace.asRelativePath(uri, false)
      const task = this.#task({ type: taskType, task: 'finetune', recipe }, folder)
      return task === undefined ? [] : [task]
    })
  }

  resolveTask(task: vscode.Task): vscode.Task | undefined {
    const { definition, scope } = task
    const folder = typeof scope === 'object' ? scope : vscode.workspace.workspaceFolders?.[0]
    return this.#task(definition as UnslothTask, folder)
  }

  /** A task that measures how fast this machine trains, on a small and a usual model. */
  benchTask(folder: vscode.WorkspaceFolder): vscode.Task | undefined {
    return this.#task(
      {
        type: taskType,
        task: 'bench',
        args: ['--shape', 'stories15m,qwen2.5-0.5b', '--tokens', '256', '--steps', '3', '--no-profile'],
      },
      folder,
    )
  }

  #task(definition: UnslothTask, folder: vscode.WorkspaceFolder | undefined): vscode.Task | undefined {
    if (folder === undefined) return undefined
    let location: EngineLocation
    try {
      location = this.#locate()
    } catch {
      return undefined
    }
    const { recipe = 'finetune.yaml', args = [] } = definition
    const alone = definition.task === 'doctor' || definition.task === 'bench'
    const words = alone
      ? [definition.task, ...args]
      : ['finetune', recipe, ...(definition.task === 'dry-run' ? ['--dry-run'] : []), ...args]
    const execution = new vscode.ProcessExecution(location.execPath, [location.entry, ...words], {
      cwd: folder.uri.fsPath,
      env: { ...location.env },
    })
    const name = alone ? definition.task : `${definition.task} ${recipe}`
    return new vscode.Task(definition, folder, name, taskType, execution, [problemMatcher])
  }
}
