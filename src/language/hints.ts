import type { InlayHint, Range } from 'vscode-languageserver'
import { effectiveBatch, stepsPerEpoch, totalSteps, type Recipe } from '#shared/recipe.ts'
import { formatCompact, formatCount, formatDuration, formatPercent } from '#shared/units.ts'
import type { Entry, Outline } from './outline.ts'
import { t } from './texts.ts'
import { lengthsOf, type RecipePlan, type Workspace } from './workspace.ts'

/** Numbers that follow from several keys, behind the keys that they follow from. */
export async function inlayHints(
  outline: Outline,
  recipe: Recipe | null,
  workspace: Workspace,
  range?: Range,
): Promise<InlayHint[]> {
  if (recipe === null) return []
  const hints: InlayHint[] = []
  const add = (entry: Entry | undefined, label: string, tooltip: string): void => {
    if (entry === undefined || entry.inFlow || entry.style !== 'plain') return
    if (range !== undefined && (entry.line < range.start.line || entry.line > range.end.line)) return
    hints.push({ position: outline.source.position(entry.valueSpan.end), label, tooltip, paddingLeft: true })
  }
  const batch = effectiveBatch(recipe)
  const unit = recipe.training.packing ? t('rows') : t('samples')
  add(
    outline.find('training.batch_size') ?? outline.find('training.gradient_accumulation_steps'),
    t('effective {0}', formatCount(batch)),
    t('One optimizer step sees batch_size × gradient_accumulation_steps = {0} {1}.', formatCount(batch), unit),
  )
  const tokens = await workspace.tokens(recipe)
  const plan = await workspace.plan(recipe, lengthsOf(tokens))
  await stepHints(outline, recipe, workspace, add, plan.ok ? plan.value : undefined)
  if (tokens.ok) {
    const { p50, p99, longest, samples, whole } = tokens.value
    add(
      outline.find('training.max_seq_length'),
      t('p99 of data {0}', formatCount(p99)),
      t(
        'Tokens of {0} samples{1}: half have at most {2}, 99 % at most {3}, the longest {4}.',
        formatCount(samples),
        whole ? '' : t(' at the beginning'),
        formatCount(p50),
        formatCount(p99),
        formatCount(longest),
      ),
    )
  }
  if (plan.ok) {
    const { trainableParameters, parameters } = plan.value
    const place = recipe.training.training_type === 'full' ? outline.find('training.training_type') : outline.find('lora.lora_r')
    add(
      place,
      t('{0} trainable, {1}', formatCompact(trainableParameters), formatPercent(trainableParameters / parameters)),
      t('{0} of {1} parameters are trained.', formatCount(trainableParameters), formatCount(parameters)),
    )
  }
  return hints
}

type Add = (entry: Entry | undefined, label: string, tooltip: string) => void

/** Rows that are trained on: those of all files less what is held out, at most `max_samples`. */
async function trainedRows(recipe: Recipe, workspace: Workspace): Promise<{ rows: number; exact: boolean } | undefined> {
  const { data } = recipe
  const files = data.local_dataset.length > 0 ? data.local_dataset : data.dataset === null ? [] : [data.dataset]
  let rows = 0
  let exact = true
  for (const file of files) {
    const facts = await workspace.dataset(file)
    if (!facts.ok || (facts.value.rows === 0 && !facts.value.exact)) return undefined
    rows += facts.value.rows
    exact &&= facts.value.exact
  }
  if (data.max_samples !== null) rows = Math.min(rows, data.max_samples)
  if (data.eval_dataset.length === 0 && typeof data.eval_split === 'number') {
    rows -= data.eval_split < 1 ? Math.ceil(data.eval_split * rows) : data.eval_split
  }
  return rows > 0 ? { rows, exact } : undefined
}

async function stepHints(
  outline: Outline,
  recipe: Recipe,
  workspace: Workspace,
  add: Add,
  plan: RecipePlan | undefined,
): Promise<void> {
  const found = await runLength(recipe, workspace)
  if (found === undefined) return
  const { steps, perEpoch, rows, exact } = found
  const about = exact ? '' : '≈ '
  const time = timeTitle(found, plan)
  const tooltip =
    t('{0} rows are {1} steps an epoch.', about + formatCount(rows), about + formatCount(perEpoch)) +
    (time === undefined ? '' : t(' The time follows from the speed that `unsloth bench` measured on this machine.'))
  const after = time === undefined ? '' : `, ${time}`
  if (recipe.training.max_steps > 0) {
    const epochs = steps / perEpoch
    add(outline.find('training.max_steps'), t('{0} epochs', about + epochs.toFixed(epochs < 10 ? 2 : 0)) + after, tooltip)
  } else
    add(
      outline.find('training.num_epochs'),
      (steps === 1 ? t('{0} step', about + formatCount(steps)) : t('{0} steps', about + formatCount(steps))) + after,
      tooltip,
    )
}

export interface RunLength {
  readonly steps: number
  readonly perEpoch: number
  readonly rows: number
  /** Whether the rows were counted and not estimated. */
  readonly exact: boolean
}

/** Steps of a run; undefined where they are not known before it starts: packed rows are known when the tokens are. */
export async function runLength(recipe: Recipe, workspace: Workspace): Promise<RunLength | undefined> {
  const found = recipe.training.packing ? undefined : await trainedRows(recipe, workspace)
  return found === undefined
    ? undefined
    : { ...found, steps: totalSteps(recipe, found.rows), perEpoch: stepsPerEpoch(recipe, found.rows) }
}

/** `~18 m`: how long a run takes; undefined where no speed was measured. */
export function timeTitle({ steps }: RunLength, plan: RecipePlan | undefined): string | undefined {
  return plan?.secondsPerStep === undefined
    ? undefined
    : `~${formatDuration(Math.max(1, Math.round(steps * plan.secondsPerStep)))}`
}
