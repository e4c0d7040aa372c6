import type { RecipeDraft } from './recipeDraft.ts'
import { asNumber, isEmpty, isFalse, isTrue } from './values.ts'

export type Read = (draft: RecipeDraft, value: unknown, all: Readonly<Record<string, unknown>>) => void

/** Puts the value at `section.key` as it is. */
export const to = (path: string): Read => (draft, value) => draft.set(path, value)

/** A reason why there is nothing to carry over; values that are off or empty need no word. */
export const because = (reason: string) => (key: string): Read => (draft, value) => {
  if (!isEmpty(value) && !isFalse(value) && value !== 0 && value !== 'none') draft.note(key, value, reason)
}

/** Known keys that mean nothing here. */
export const ignore: Read = () => undefined

const schedulers = new Set(['constant', 'constant_with_warmup', 'linear', 'cosine', 'cosine_with_restarts', 'polynomial'])
export const scheduler = (key: string): Read => (draft, value) => {
  if (typeof value !== 'string') return
  if (schedulers.has(value)) draft.set('training.lr_scheduler_type', value)
  else {
    draft.set('training.lr_scheduler_type', 'cosine')
    draft.note(key, value, 'this schedule is not available; cosine is the nearest')
  }
}

const optimizers: Readonly<Record<string, string>> = {
  adamw_torch: 'adamw_torch', adamw_torch_fused: 'adamw_torch', adamw_hf: 'adamw_torch', adamw: 'adamw_torch', adamw_bnb_8bit: 'adamw_8bit',
  adamw_8bit: 'adamw_8bit', paged_adamw_8bit: 'paged_adamw_8bit', paged_adamw_32bit: 'paged_adamw_32bit', paged_adamw: 'paged_adamw_32bit',
  adamw_torch_8bit: 'adamw_8bit', adamw_torch_xla: 'adamw_torch', adamw_apex_fused: 'adamw_torch',
}
export const optimizer = (key: string): Read => (draft, value) => {
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
export const steps = (path: string, key: string): Read => (draft, value) => {
  const number = asNumber(value)
  if (number === undefined) return
  if (number > 0 && number < 1 && path !== 'training.eval_steps') draft.note(key, value, 'a share of the steps; give a number of steps')
  else draft.set(path, number)
}

/** What becomes of the keys of one program. */
export type KeyTable = Readonly<Record<string, Read>>

/** Goes through a file's keys in their order. */
export function readKeys(draft: RecipeDraft, all: Readonly<Record<string, unknown>>, table: KeyTable, unknown: string): void {
  for (const [key, value] of Object.entries(all)) {
    const read = Object.hasOwn(table, key) ? table[key] : undefined
    if (read !== undefined) read(draft, value, all)
    else if (!isEmpty(value) && !isFalse(value)) draft.note(key, value, unknown)
  }
}
