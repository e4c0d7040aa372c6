import { closest, type Recipe } from '#shared/recipe.ts'
import { formatBytes, formatCount } from '#shared/units.ts'
import { usableShare } from '../../engine/runtime/memory.ts'
import { problem, severity, type RecipeProblem, type WorldCode } from './diagnostics.ts'
import type { Entry, Outline } from './outline.ts'
import { t } from './texts.ts'
import { lengthsOf, type DatasetFacts, type ModelFacts, type Workspace } from './workspace.ts'

const asking = (near: string | undefined): string => (near === undefined ? '' : t('; did you mean {0}?', near))

type Report = (entry: Entry, level: 1 | 2 | 3, code: WorldCode, message: string, item?: number, suggestion?: string) => void

/**
 * What a recipe asks of the world around it: files, layers, columns, context, memory. `recipe` is null while the text has
 * errors; then the files and names that can be read are checked nevertheless. Never an obstacle: the engine decides.
 */
export async function diagnoseWorld(outline: Outline, recipe: Recipe | null, workspace: Workspace): Promise<RecipeProblem[]> {
  const problems: RecipeProblem[] = []
  const { source } = outline
  const report: Report = (entry, level, code, message, item, suggestion) => {
    const span =
      (item === undefined ? undefined : entry.items[item]?.span) ??
      (entry.valueSpan.end > entry.valueSpan.start ? entry.valueSpan : entry.keySpan)
    const path = [...(entry.parent === undefined ? [] : [entry.parent]), entry.key, ...(item === undefined ? [] : [item])]
    problems.push(problem(source, span, level, code, message, { path, ...(suggestion === undefined ? {} : { suggestion }) }))
  }
  const model = await checkModel(outline, workspace, report)
  const data = await checkData(outline, workspace, report)
  checkPaths(outline, workspace, report)
  await checkDevice(outline, workspace, report)
  if (model !== undefined) checkLayers(outline, model, recipe, report)
  if (data !== undefined) checkColumns(outline, data, recipe, report)
  if (recipe !== null) await checkSizes(outline, recipe, model, workspace, report)
  return problems
}

async function checkModel(outline: Outline, workspace: Workspace, report: Report): Promise<ModelFacts | undefined> {
  const entry = outline.find('model.name')
  if (entry === undefined || entry.value === '' || entry.style !== 'plain') return undefined
  const facts = await workspace.model(entry.value)
  if (facts.ok) return facts.value
  if (!facts.missing) report(entry, severity.error, 'model_invalid', facts.problem)
  else if (workspace.isPath(entry.value)) report(entry, severity.error, 'file_missing', facts.problem)
  else {
    const near = closest(
      entry.value,
      (await workspace.models()).map(({ name }) => name),
    )
    report(entry, severity.warning, 'model_missing', `${facts.problem}${asking(near)}`, undefined, near)
  }
  return undefined
}

async function checkData(outline: Outline, workspace: Workspace, report: Report): Promise<DatasetFacts | undefined> {
  let first: DatasetFacts | undefined
  for (const path of ['data.local_dataset', 'data.dataset', 'data.eval_dataset']) {
    const entry = outline.find(path)
    if (entry === undefined) continue
    const names = outline.list(path)
    for (const [index, name] of names.slice(0, 50).entries()) {
      const item = entry.items.length > 0 ? index : undefined
      const facts = await workspace.dataset(name)
      if (!facts.ok) {
        // A name without a slash or an ending may be a data set of the Hub.
        if (facts.missing && path === 'data.dataset' && !workspace.isPath(name)) continue
        const near = closest(
          name,
          (await workspace.datasets()).map((found) => found.name),
        )
        report(
          entry,
          severity.error,
          facts.missing ? 'file_missing' : 'dataset_format',
          `${facts.problem}${asking(near)}`,
          item,
          near,
        )
      } else {
        if (facts.value.bytes === 0) report(entry, severity.error, 'dataset_format', t('{0} is empty', name), item)
        if (path !== 'data.eval_dataset') first ??= facts.value
      }
    }
  }
  return first
}

function checkPaths(outline: Outline, workspace: Workspace, report: Report): void {
  for (const [path, what] of [
    ['lora.init_adapter', 'adapter folder'],
    ['training.resume_from', 'checkpoint'],
  ] as const) {
    const entry = outline.find(path)
    if (entry?.style !== 'plain' || /^(?:latest|true|false|null|none|~|)$/i.test(entry.value)) continue
    if (workspace.kindOf(entry.value) === undefined)
      report(entry, severity.error, 'file_missing', t('there is no {0} {1}', t(what), entry.value))
  }
}

/** A GPU that the engine does not name; without an engine that runs, nobody knows. */
async function checkDevice(outline: Outline, workspace: Workspace, report: Report): Promise<void> {
  const entry = outline.find('training.device')
  if (entry === undefined || !/^cuda:\d+$/i.test(entry.value)) return
  const gpus = (await workspace.devices()).filter(({ id }) => id.startsWith('cuda'))
  if (gpus.length === 0 || gpus.some(({ id }) => id === entry.value.toLowerCase())) return
  report(
    entry,
    severity.error,
    'device_missing',
    t('there is no GPU {0} here; there are {1}', entry.value, gpus.map(({ id, label }) => `${id} (${label})`).join(', ')),
    undefined,
    gpus[0]!.id,
  )
}

function checkLayers(outline: Outline, model: ModelFacts, recipe: Recipe | null, report: Report): void {
  if (recipe?.training.training_type === 'full') return
  const targets = outline.find('lora.target_modules')
  const names =
    targets === undefined
      ? []
      : targets.items.length === 0 && /[\\*+?()[\]{}|^$]/.test(targets.value)
        ? []
        : targets.items.length > 0
          ? targets.items.map(({ value }) => value)
          : targets.value.split(',').map((name) => name.trim())
  const known = new Set([...model.targetModules, 'all-linear', 'embed_tokens', 'lm_head', ''])
  for (const [index, name] of names.entries()) {
    if (known.has(name) || model.modulePaths.has(name) || [...model.modulePaths].some((path) => path.endsWith(`.${name}`)))
      continue
    const near = closest(name, model.targetModules)
    report(
      targets!,
      severity.error,
      'target_missing',
      t('this model has no layer {0}{1}; it has {2}', name, asking(near), model.targetModules.join(', ')),
      targets!.items.length > 0 ? index : undefined,
      targets!.items.length > 0 || names.length === 1 ? near : undefined,
    )
  }
  const chosen = outline.find('lora.layers_to_transform')
  for (const [index, { value }] of (chosen?.items ?? []).entries()) {
    if (Number(value) >= model.layers)
      report(
        chosen!,
        severity.error,
        'layer_range',
        t('this model has {0} layers, numbered from 0 to {1}', model.layers, model.layers - 1),
        index,
      )
  }
  const last = outline.find('lora.finetune_last_n_layers')
  if (last !== undefined && Number(last.value) > model.layers)
    report(last, severity.warning, 'layer_range', t('this model has {0} layers', model.layers))
}

/** Columns that a format cannot do without. */
const needs: Readonly<Record<string, readonly string[]>> = {
  alpaca: ['instruction', 'output'],
  completion: ['prompt', 'completion'],
}

function checkColumns(outline: Outline, data: DatasetFacts, recipe: Recipe | null, report: Report): void {
  const entry = outline.find('data.local_dataset') ?? outline.find('data.dataset')
  if (data.bytes === 0 || entry === undefined || (data.columns.length === 0 && data.problem === undefined)) return
  if (data.columns.length === 0) {
    report(entry, severity.warning, 'dataset_format', t('no row could be read from the beginning of {0}', data.path))
    return
  }
  const format = recipe?.data.format_type ?? outline.value('data.format_type') ?? 'auto'
  const column = outline.find('data.text_column')
  const columns = data.columns.slice(0, 20).join(', ')
  const has = (name: string): boolean => data.columns.includes(name)
  if (
    column !== undefined &&
    column.value !== '' &&
    !has(column.value) &&
    (format === 'text' || format === 'raw' || data.format === undefined)
  ) {
    const near = closest(column.value, data.columns)
    report(
      column,
      severity.error,
      'column_missing',
      t('the data have no column {0}{1}; they have {2}', column.value, asking(near), columns),
      undefined,
      near,
    )
    return
  }
  // With columns of other names the engine decides what fits.
  if (outline.find('data.columns') !== undefined || outline.find('data.merged_prompt') !== undefined) return
  const place = outline.find('data.format_type') ?? entry
  const missing = (needs[format] ?? []).filter((name) => !has(name))
  if (missing.length > 0) {
    report(
      place,
      severity.error,
      'column_missing',
      t('format_type: {0} needs the columns {1}; the data have {2}', format, missing.join(', '), columns),
    )
  } else if ((format === 'chatml' || format === 'sharegpt') && data.format !== 'chatml' && data.format !== 'sharegpt') {
    report(
      place,
      severity.error,
      'dataset_format',
      t('format_type: {0} needs a column of conversations; the data have {1}', format, columns),
    )
  } else if (format === 'auto' && data.format === undefined && !has(column?.value ?? '')) {
    report(
      place,
      severity.error,
      'dataset_format',
      t('{0}; say which column holds the text with data.text_column', data.problem ?? t('the format of the rows is not known')),
    )
  }
}

async function checkSizes(
  outline: Outline,
  recipe: Recipe,
  model: ModelFacts | undefined,
  workspace: Workspace,
  report: Report,
): Promise<void> {
  const { max_seq_length: length } = recipe.training
  const place = outline.find('training.max_seq_length') ?? outline.find('model.name')
  if (model === undefined || place === undefined) return
  const tokens = await workspace.tokens(recipe)
  const set = place.field?.path === 'training.max_seq_length'
  // A default beyond the context does no harm while the data are short.
  if (length > model.context && (set || (tokens.ok && tokens.value.longest > model.context))) {
    report(
      place,
      severity.warning,
      'sequence_length',
      t(
        'max_seq_length ({0}{1}) is beyond the {2} tokens that this model was made for',
        formatCount(length),
        set ? '' : t(', the default'),
        formatCount(model.context),
      ),
      undefined,
      set ? String(model.context) : undefined,
    )
  }
  if (tokens.ok && tokens.value.p99 > length) {
    report(
      place,
      severity.information,
      'data_truncated',
      t(
        'more than 1 % of the samples are longer than {0} tokens and will be cut; 99 % have at most {1}',
        formatCount(length),
        formatCount(tokens.value.p99),
      ),
      undefined,
      set ? String(Math.min(model.context, tokens.value.longest)) : undefined,
    )
  }
  const plan = await workspace.plan(recipe, lengthsOf(tokens))
  if (!plan.ok) return
  const { totalBytes, freeBytes, parts } = plan.value
  const cap = recipe.training.max_memory === null ? Infinity : recipe.training.max_memory * 2 ** 30
  if (totalBytes > cap) {
    report(
      outline.find('training.max_memory') ?? place,
      severity.warning,
      'memory',
      t('this run needs {0}, but training.max_memory allows {1}', formatBytes(totalBytes), formatBytes(cap)),
    )
  } else if (freeBytes !== undefined && totalBytes > freeBytes * usableShare) {
    const largest = parts.filter((part) => part.place === undefined).reduce((a, b) => (a.bytes >= b.bytes ? a : b))
    report(
      place,
      severity.warning,
      'memory',
      t(
        'this run needs {0}, but {1} are free; the largest part is {2} with {3}',
        formatBytes(totalBytes),
        formatBytes(freeBytes),
        largest.name,
        formatBytes(largest.bytes),
      ),
    )
  }
}
