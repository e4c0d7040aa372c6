import type { RecipeDraft } from './recipeDraft.ts'
import { asNumber, isEmpty, isFalse, isTrue } from './values.ts'

export type Read = (draft: RecipeDraft, value: unknown, all: Readonly<Record<string, unknown>>) => void

/** Puts the value at `section.key` as it is. */
export const to =
  (path: string): Read =>
  (draft, value) =>
    draft.set(path, value)

/** Tells why there is nothing to carry over; values that are off or empty need no word. */
const because =
  (key: string, reason: string): Read =>
  (draft, value) => {
    if (!isEmpty(value) && !isFalse(value) && value !== 0 && value !== 'none') draft.note(key, value, reason)
  }

const ignore: Read = () => undefined

/** What becomes of the keys of one program. */
export type KeyTable = Readonly<Record<string, Read>>

export interface KeyTableParts {
  /** Keys that have another name here: key → `section.key`. */
  readonly renamed: Readonly<Record<string, string>>
  /** Keys that are read in a way of their own. */
  readonly read: KeyTable
  /** Why a setting is not carried over → keys. */
  readonly refused: Readonly<Record<string, readonly string[]>>
  /** Keys that mean nothing here, or change nothing. */
  readonly ignored: readonly string[]
}

/** The table of a program's keys. */
export function keyTable({ renamed, read, refused, ignored }: KeyTableParts): KeyTable {
  const table: Record<string, Read> = { ...read }
  for (const [key, path] of Object.entries(renamed)) table[key] = to(path)
  for (const [reason, keys] of Object.entries(refused)) for (const key of keys) table[key] = because(key, reason)
  for (const key of ignored) table[key] = ignore
  return table
}

const schedulers = new Set(['constant', 'constant_with_warmup', 'linear', 'cosine', 'cosine_with_restarts', 'polynomial'])
export const scheduler =
  (key: string): Read =>
  (draft, value) => {
    if (typeof value !== 'string') return
    if (schedulers.has(value)) draft.set('training.lr_scheduler_type', value)
    else {
      draft.set('training.lr_scheduler_type', 'cosine')
      draft.note(key, value, 'this schedule is not available; cosine is the nearest')
    }
  }

const optimizers: Readonly<Record<string, string>> = {
  adamw_torch: 'adamw_torch',
  adamw_torch_fused: 'adamw_torch',
  adamw_hf: 'adamw_torch',
  adamw: 'adamw_torch',
  adamw_bnb_8bit: 'adamw_8bit',
  adamw_8bit: 'adamw_8bit',
  paged_adamw_8bit: 'paged_adamw_8bit',
  paged_adamw_32bit: 'paged_adamw_32bit',
  paged_adamw: 'paged_adamw_32bit',
  adamw_torch_8bit: 'adamw_8bit',
  adamw_torch_xla: 'adamw_torch',
  adamw_apex_fused: 'adamw_torch',
}
export const optimizer =
  (key: string): Read =>
  (draft, value) => {
    if (typeof value !== 'string') return
    const known = optimizers[value.toLowerCase()]
    if (known === undefined) draft.note(key, value, 'this optimizer is not available; AdamW is used')
    else draft.set('training.optim', known)
  }

/** Warm-up in steps, or as a share when it is below 1. */
export const warmup: Read = (draft, value) => {
  const number = asNumber(value)
  if (number === undefined) return
  if (number > 0 && number < 1) draft.set('training.warmup_ratio', number)
  else draft.set('training.warmup_steps', Math.round(number))
}

export const resume: Read = (draft, value) => {
  if (isTrue(value)) draft.set('training.resume_from', 'latest')
  else if (typeof value === 'string' && !isFalse(value)) draft.set('training.resume_from', value)
}

/** A number of steps; a share or a count per epoch that is not known as steps is told. */
export const steps =
  (path: string, key: string): Read =>
  (draft, value) => {
    const number = asNumber(value)
    if (number === undefined) return
    if (number > 0 && number < 1 && path !== 'training.eval_steps')
      draft.note(key, value, 'a share of the steps; give a number of steps')
    else draft.set(path, number)
  }

/** Goes through a file's keys in their order. */
export function readKeys(draft: RecipeDraft, all: Readonly<Record<string, unknown>>, table: KeyTable, unknown: string): void {
  for (const [key, value] of Object.entries(all)) {
    const read = Object.hasOwn(table, key) ? table[key] : undefined
    if (read !== undefined) read(draft, value, all)
    else if (!isEmpty(value) && !isFalse(value)) draft.note(key, value, unknown)
  }
}
