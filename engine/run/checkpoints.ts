import fs from 'node:fs'
import { join, sep } from 'node:path'
import * as z from 'zod'
import { UnslothError } from '#shared/errors.ts'
import type { RunFs } from './files.ts'
import {
  fileWriteError,
  nodeFs,
  readJson,
  readNames,
  renameOver,
  syncFolder,
  temporaryName,
  temporaryPrefix,
  uniqueSuffix,
  writeFileAtomic,
} from './files.ts'
import { runFiles } from './runFiles.ts'

const manifestSchema = z.object({
  version: z.literal(1),
  step: z.number().int().nonnegative(),
  epoch: z.number().nullable(),
  createdAt: z.string(),
  /** Training loss at the step, or eval loss where one was computed; for lists and for keeping the best. */
  loss: z.number().nullable(),
  evalLoss: z.number().nullable(),
  /** Every file of the folder with its size: the checkpoint is complete when all are there. */
  files: z.array(z.object({ path: z.string(), bytes: z.number().int().nonnegative() })),
})

/** A complete checkpoint. */
export type CheckpointInfo = z.infer<typeof manifestSchema> & {
  /** Absolute path of its folder. */
  readonly path: string
  /** All files together. */
  readonly bytes: number
}

export interface CheckpointNote {
  readonly epoch?: number
  readonly loss?: number
  readonly evalLoss?: number
}

/** The file that is written last and makes a checkpoint count. */
export const checkpointManifest = 'checkpoint.json'
/** Names a complete checkpoint that is about to be replaced by another one of its step. */
const replacedPrefix = '.replaced-'

/** `step-000123`. */
export const checkpointName = (step: number): string => `step-${String(step).padStart(6, '0')}`

/** The checkpoint in a folder, or undefined when it is not complete. */
export function readCheckpoint(path: string): CheckpointInfo | undefined {
  const parsed = manifestSchema.safeParse(readJson(join(path, checkpointManifest)))
  if (!parsed.success) return undefined
  for (const file of parsed.data.files) {
    const found = fs.statSync(join(path, file.path), { throwIfNoEntry: false })
    if (found?.size !== file.bytes) return undefined
  }
  return { ...parsed.data, path, bytes: parsed.data.files.reduce((sum, file) => sum + file.bytes, 0) }
}

/** The complete checkpoints in a `checkpoints` folder, oldest step first. */
export function listCheckpoints(folder: string): CheckpointInfo[] {
  return readNames(folder)
    .filter((name) => /^step-\d+$/.test(name))
    .map((name) => readCheckpoint(join(folder, name)))
    .filter((checkpoint) => checkpoint !== undefined)
    .sort((a, b) => a.step - b.step)
}

/** The checkpoint with the highest step, or undefined when there is no complete one. */
export function newestCheckpoint(folder: string): CheckpointInfo | undefined {
  const names = readNames(folder).filter((name) => /^step-\d+$/.test(name))
  const step = (name: string): number => Number(name.slice('step-'.length))
  for (const name of names.sort((a, b) => step(b) - step(a))) {
    const checkpoint = readCheckpoint(join(folder, name))
    if (checkpoint !== undefined) return checkpoint
  }
  return undefined
}

/** The newest complete checkpoint of a run directory. */
export const latestCheckpoint = (dir: string): CheckpointInfo | undefined => newestCheckpoint(join(dir, runFiles.checkpoints))

/** A checkpoint being written, in a folder beside its final place. */
export class CheckpointDraft {
  /** The folder to fill; sub-folders are allowed. */
  readonly path: string
  readonly step: number
  readonly #folder: string
  readonly #disk: RunFs

  constructor(folder: string, step: number, disk: RunFs = nodeFs) {
    this.step = step
    this.#folder = folder
    this.#disk = disk
    this.path = temporaryName(join(folder, checkpointName(step)))
    try {
      // Not recursive: a run directory that was deleted meanwhile must not come back half.
      if (!fs.existsSync(folder)) disk.mkdirSync(folder)
      disk.mkdirSync(this.path)
    } catch (error) {
      throw fileWriteError(error, this.path)
    }
  }

  /**
   * Puts the checkpoint in its place: all files on the disk first, then the manifest, then the name. One of the same step
   * is replaced. After a failure the earlier checkpoints are as they were and the draft is gone.
   */
  commit(note: CheckpointNote = {}): CheckpointInfo {
    const target = join(this.#folder, checkpointName(this.step))
    try {
      const files = this.#syncFiles('')
      const manifest: z.infer<typeof manifestSchema> = {
        version: 1,
        step: this.step,
        epoch: note.epoch ?? null,
        createdAt: new Date().toISOString(),
        loss: finite(note.loss),
        evalLoss: finite(note.evalLoss),
        files,
      }
      writeFileAtomic(join(this.path, checkpointManifest), `${JSON.stringify(manifest, null, 2)}\n`, { disk: this.#disk })
      const replaced = join(this.#folder, `${replacedPrefix}${checkpointName(this.step)}-${uniqueSuffix()}`)
      const hadOne = fs.existsSync(target)
      if (hadOne) renameOver(this.#disk, target, replaced)
      try {
        renameOver(this.#disk, this.path, target)
      } catch (error) {
        if (hadOne) renameOver(this.#disk, replaced, target)
        throw error
      }
      syncFolder(this.#disk, this.#folder)
      if (hadOne) fs.rmSync(replaced, { recursive: true, force: true })
    } catch (error) {
      this.discard()
      throw fileWriteError(error, target)
    }
    const checkpoint = readCheckpoint(target)
    if (checkpoint !== undefined) return checkpoint
    throw new UnslothError('FILE_WRITE', `${target}: the checkpoint was changed while it was written.`)
  }

  /** Removes the draft. */
  discard(): void {
    fs.rmSync(this.path, { recursive: true, force: true })
  }

  #syncFiles(inside: string): { path: string; bytes: number }[] {
    const files: { path: string; bytes: number }[] = []
    const folder = join(this.path, inside)
    for (const entry of fs.readdirSync(folder, { withFileTypes: true })) {
      const path = join(inside, entry.name)
      if (entry.isDirectory()) {
        files.push(...this.#syncFiles(path))
      } else if (path !== checkpointManifest) {
        const fd = this.#disk.openSync(join(this.path, path), 'r+')
        try {
          this.#disk.fsyncSync(fd)
          files.push({ path: path.split(sep).join('/'), bytes: fs.fstatSync(fd).size })
        } finally {
          this.#disk.closeSync(fd)
        }
      }
    }
    syncFolder(this.#disk, folder)
    return files
  }
}

const finite = (value: number | undefined): number | null => (value !== undefined && Number.isFinite(value) ? value : null)

/**
 * Removes complete checkpoints but the newest `limit` (at least one) and those of the steps in `keep`. A folder gets
 * another name first, so that no half-deleted one can be taken for complete. Returns the steps removed.
 */
export function pruneCheckpoints(folder: string, limit: number, keep: readonly number[] = [], disk: RunFs = nodeFs): number[] {
  const all = listCheckpoints(folder)
  const removed: number[] = []
  for (const checkpoint of all.slice(0, Math.max(0, all.length - Math.max(1, limit)))) {
    if (keep.includes(checkpoint.step)) continue
    const doomed = temporaryName(checkpoint.path)
    try {
      renameOver(disk, checkpoint.path, doomed)
    } catch (error) {
      throw fileWriteError(error, checkpoint.path)
    }
    fs.rmSync(doomed, { recursive: true, force: true })
    removed.push(checkpoint.step)
  }
  return removed
}

/** Clears what a dead writer left: unfinished drafts, half-deleted folders; a replacement that was cut short is undone. */
export function recoverCheckpoints(folder: string): void {
  for (const name of readNames(folder)) {
    const path = join(folder, name)
    if (name.startsWith(replacedPrefix)) {
      const target = join(folder, name.slice(replacedPrefix.length).replace(/-[0-9a-f]+$/, ''))
      if (!fs.existsSync(target) && readCheckpoint(path) !== undefined) fs.renameSync(path, target)
      else fs.rmSync(path, { recursive: true, force: true })
    } else if (name.startsWith(temporaryPrefix)) {
      fs.rmSync(path, { recursive: true, force: true })
    }
  }
}
