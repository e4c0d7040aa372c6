import { fileURLToPath } from 'node:url'
import type { CheckpointInfo } from '../../engine/run/checkpoints.ts'
import type { RunView } from '../../engine/run/runReader.ts'
import type { RunOutput } from '#shared/runState.ts'
import type { LibraryDataset, LibraryModel } from './library.ts'

/** A row of one of the trees. `path` is what commands act on. */
export type TreeNode =
  | { readonly kind: 'model'; readonly path: string; readonly model: LibraryModel }
  | { readonly kind: 'fact'; readonly path: string; readonly label: string; readonly value: string; readonly problem?: boolean }
  | { readonly kind: 'dataset'; readonly path: string; readonly dataset: LibraryDataset }
  | { readonly kind: 'run'; readonly path: string; readonly view: RunView }
  | { readonly kind: 'checkpoint'; readonly path: string; readonly checkpoint: CheckpointInfo; readonly run: string }
  | { readonly kind: 'output'; readonly path: string; readonly output: RunOutput; readonly run: string }

/** Whether a command's argument is a row of a tree. */
export function isTreeNode(value: unknown): value is TreeNode {
  return typeof value === 'object' && value !== null && 'kind' in value && 'path' in value && typeof value.path === 'string'
}

/** The path that an argument of a command stands for: a path, a URI of the file system (also as text), or a row of a tree. */
export function pathOf(value: unknown): string | undefined {
  if (typeof value === 'string') return value === '' ? undefined : value.startsWith('file://') ? fileURLToPath(value) : value
  if (isTreeNode(value)) return value.path
  if (
    typeof value === 'object' &&
    value !== null &&
    'scheme' in value &&
    value.scheme === 'file' &&
    'fsPath' in value &&
    typeof value.fsPath === 'string'
  )
    return value.fsPath
  return undefined
}

/** The run directory that an argument stands for: also through one of the run's checkpoints or outputs. */
export function runOf(value: unknown): string | undefined {
  return isTreeNode(value) && (value.kind === 'checkpoint' || value.kind === 'output') ? value.run : pathOf(value)
}
