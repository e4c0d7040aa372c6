import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { latestCheckpoint } from '../run/checkpoints.ts'
import { RunDirectory } from '../run/runDirectory.ts'

/** A run directory stands for what it made: its adapter, its merged model, or its newest checkpoint. Other names stay. */
export function runResult(name: string): string {
  if (!RunDirectory.isRun(name)) return name
  const made =
    ['adapter', 'merged'].map((kind) => join(name, kind)).find((folder) => existsSync(folder)) ?? latestCheckpoint(name)?.path
  if (made === undefined)
    throw new UnslothError('RUN_INVALID', `${name}: this run has saved nothing yet.`, {
      hint: 'Wait for its first checkpoint, or for its end.',
    })
  return made
}
