import fs from 'node:fs'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import type { RunStatus } from '#shared/runState.ts'
import { runStatusSchema } from '#shared/runState.ts'

/** The files of a run. */
export const runFiles = {
  recipe: 'recipe.yaml',
  status: 'status.json',
  heartbeat: 'heartbeat.json',
  metrics: 'metrics.jsonl',
  log: 'log.txt',
  stdout: 'stdout.log',
  control: 'control.json',
  checkpoints: 'checkpoints',
  lock: '.lock',
} as const

/** The content of status.json; RUN_INVALID when there is none or it is damaged. */
export function readStatusFile(dir: string): RunStatus {
  const path = join(dir, runFiles.status)
  let text: string
  try {
    text = fs.readFileSync(path, 'utf8')
  } catch (error) {
    throw new UnslothError('RUN_INVALID', `${dir}: not a run directory: it has no readable ${runFiles.status}.`, {
      hint: 'Give the folder of a run, as `unsloth finetune` prints it.',
      cause: error,
    })
  }
  return parseStatus(text, path)
}

/** status.json's text, checked. */
export function parseStatus(text: string, path: string): RunStatus {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw new UnslothError('RUN_INVALID', `${path}: damaged: ${(error as Error).message}`, { cause: error })
  }
  const parsed = runStatusSchema.safeParse(value)
  if (parsed.success) return parsed.data
  const version = (value as { version?: unknown } | null)?.version
  if (typeof version === 'number' && version > 1) {
    throw new UnslothError('RUN_INVALID', `${path}: written by a newer version (format ${version}).`, {
      hint: 'Update Unsloth to read this run.',
    })
  }
  const issue = parsed.error.issues[0]
  throw new UnslothError('RUN_INVALID', `${path}: ${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'damaged'}`)
}
