import type { TextEdit } from 'vscode-languageserver'
import type { RecipeProblem } from '../diagnostics.ts'
import { insertKeys, setValue } from '../edit/recipeEdits.ts'
import { formatNumber, yamlValue } from '../fieldText.ts'
import type { Entry, Outline } from '../outline.ts'
import { put, removal, suggested, type Fix } from './fix.ts'
import { t } from '../texts.ts'

/** Fixes for a recipe without a model. */
export function missingFixes(outline: Outline, path: readonly (string | number)[]): Fix[] {
  if (path[0] !== 'model') return []
  const entry = outline.section('model')
  if (entry === undefined)
    return [{ title: t('Add the model'), edits: [insertAtTop(outline, 'model: Qwen/Qwen2.5-0.5B')], preferred: true }]
  if (entry.style === 'section')
    return [
      {
        title: t('Add the name of the model'),
        edits: [insertKeys(outline, 'model', [{ key: 'name', lines: ['name: Qwen/Qwen2.5-0.5B'] }])],
        preferred: true,
      },
    ]
  return [{ title: t('Add the name of the model'), edits: [setValue(outline, entry, 'Qwen/Qwen2.5-0.5B')], preferred: true }]
}

function insertAtTop(outline: Outline, line: string): TextEdit {
  const { source } = outline
  const version = outline.section('version')
  const at =
    version === undefined
      ? outline.sections[0] === undefined
        ? source.text.length
        : source.lineStart(outline.sections[0].line)
      : source.lineEnd(version.line)
  if (version !== undefined) return source.edit({ start: at, end: at }, source.eol + line)
  const mark = at === 0 && source.text.startsWith('\ufeff') ? 1 : 0
  return source.edit({ start: at + mark, end: at + mark }, ' '.repeat(outline.rootIndent) + line + source.eol)
}

/** Gives a setting without effect what it needs. */
export function evalFix(outline: Outline, path: readonly (string | number)[]): Fix[] {
  if (path.at(-1) === 'eval_steps')
    return [
      { title: t('Hold 5 % of the rows out for evaluation'), edits: [put(outline, 'data.eval_split', '0.05')], preferred: true },
    ]
  if (path.at(-1) === 'save_total_limit')
    return [
      { title: t('Write a checkpoint every 100 steps'), edits: [put(outline, 'training.save_steps', '100')], preferred: true },
    ]
  if (path.at(-1) === 'warmup_steps')
    return [
      {
        title: t('Change to constant_with_warmup'),
        edits: [put(outline, 'training.lr_scheduler_type', 'constant_with_warmup')],
        preferred: true,
      },
    ]
  return []
}

/** Fixes for settings that exclude each other. */
export function conflictFixes(outline: Outline, problem: RecipeProblem, entry: Entry | undefined): Fix[] {
  const path = problem.data.path.join('.')
  const { template = '' } = problem.data
  const fixes: Fix[] = []
  const offer = (title: string, key: string, value: string): void => {
    fixes.push({ title, edits: [put(outline, key, value)], preferred: fixes.length === 0 })
  }
  if (path === 'data') offer(t('Add data.local_dataset'), 'data.local_dataset', 'data/train.jsonl')
  else if (template.includes('quantised weights cannot be trained')) {
    for (const key of ['training.load_in_4bit', 'training.load_in_8bit'])
      if (outline.find(key) !== undefined) offer(t('Set {0} to false', key.split('.')[1]!), key, 'false')
    offer(t('Train an adapter instead'), 'training.training_type', 'lora')
  } else if (template.includes('would never reach its peak')) {
    const steps = Number(outline.find('training.max_steps')?.value ?? 0)
    offer(t('Set {0} to {1}', 'warmup_steps', Math.floor(steps / 10)), 'training.warmup_steps', String(Math.floor(steps / 10)))
  } else if (template.includes('nothing would be trained')) offer(t('Set num_epochs to 1'), 'training.num_epochs', '1')
  else if (template.includes('is not possible; use training_type: lora'))
    offer(t('Train an adapter instead'), 'training.training_type', 'lora')
  else if (template.includes('save.method lora needs an adapter'))
    offer(t('Change to merged_16bit'), 'save.method', 'merged_16bit')
  else if (template.includes('write it alone')) offer(t('Change to all-linear'), 'lora.target_modules', 'all-linear')
  else if (template.includes('names no layer')) offer(t('Change to all-linear'), 'lora.target_modules', 'all-linear')
  else if (template.includes('must be less than data.chunk_size')) offer(t('Set stride to 0'), 'data.stride', '0')
  if (entry?.field !== undefined && path !== 'model') fixes.push(removal(outline, entry))
  return fixes
}

/** Fixes for what is not available yet. */
export function unavailableFixes(outline: Outline, entry: Entry): Fix[] {
  const { field } = entry
  if (field === undefined) return []
  const known = Object.keys(field.meta.values ?? {}).filter(
    (value) => field.meta.availability?.applies(field.meta.kind === 'list' ? [value] : value) !== true,
  )
  const value =
    field.meta.kind === 'choice'
      ? known.includes(String(field.meta.default))
        ? String(field.meta.default)
        : known[0]
      : undefined
  const fixes: Fix[] = value === undefined ? [] : [{ title: t('Change to {0}', value), edits: [setValue(outline, entry, value)] }]
  return [...fixes, { ...removal(outline, entry), preferred: true }]
}

/** Fixes for a value of the wrong type or out of its range. */
export function valueFixes(outline: Outline, problem: RecipeProblem, entry: Entry): Fix[] {
  const { suggestion, path } = problem.data
  if (suggestion !== undefined) return [suggested(outline, entry, suggestion, path.at(-1))]
  const meta = entry.field?.meta
  if (meta === undefined)
    return entry.key === 'version' ? [{ title: t('Change to 1'), edits: [setValue(outline, entry, '1')], preferred: true }] : []
  const fixes: Fix[] = []
  const number = Number(entry.value.replaceAll('_', ''))
  const bound = Number.isNaN(number)
    ? undefined
    : meta.min !== undefined && number < meta.min
      ? meta.min
      : meta.max !== undefined && number > meta.max
        ? meta.max
        : meta.kind === 'integer' && !Number.isInteger(number)
          ? Math.round(number)
          : undefined
  if (bound !== undefined)
    fixes.push({
      title: t('Change to {0}', formatNumber(bound)),
      edits: [setValue(outline, entry, formatNumber(bound))],
      preferred: true,
    })
  if (meta.default !== undefined && meta.default !== null) {
    const text = yamlValue(meta.default)
    fixes.push({ title: t('Change to the default {0}', text.length > 40 ? '…' : text), edits: [setValue(outline, entry, text)] })
  }
  return [...fixes, removal(outline, entry)]
}

/** Ways to need less memory. */
export function memoryFixes(outline: Outline): Fix[] {
  const fixes: Fix[] = []
  const length = Number(outline.value('training.max_seq_length') ?? 2048)
  const checkpointing = outline.value('training.gradient_checkpointing')
  if (checkpointing !== undefined && !['auto', 'full'].includes(checkpointing)) {
    fixes.push({
      title: t('Recompute activations as needed'),
      edits: [put(outline, 'training.gradient_checkpointing', 'auto')],
      preferred: true,
    })
  }
  if (length > 256)
    fixes.push({
      title: t('Halve max_seq_length to {0}', Math.floor(length / 2)),
      edits: [put(outline, 'training.max_seq_length', String(Math.floor(length / 2)))],
    })
  const rank = Number(outline.value('lora.lora_r') ?? 64)
  if (rank > 16 && outline.value('training.training_type') !== 'full')
    fixes.push({ title: t('Lower lora_r to 16'), edits: [put(outline, 'lora.lora_r', '16')] })
  if (outline.value('training.training_type') === 'full')
    fixes.push({ title: t('Train an adapter instead'), edits: [put(outline, 'training.training_type', 'lora')] })
  return fixes
}
