import { stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { PreviewFilter, PreviewOrder, PreviewParams, PreviewResult } from '#shared/protocol.ts'
import type { Recipe, RecipeOverride } from '#shared/recipe.ts'
import { buildDataset, type Dataset } from '../data/dataset.ts'
import { previewDataset } from '../data/preview.ts'
import { datasetOptions, mixedPaths, readRecipeData, tokenizerOptions, trainingSource } from '../data/recipeData.ts'
import { readSourceRows } from '../data/readRows.ts'
import { fillsLimit, sampleProblems } from '../data/sampleProblems.ts'
import { loadTokenizer, type Tokenizer } from '../data/tokenizer.ts'
import { diagnoseRecipe } from '../recipe/parseRecipe.ts'
import { resolveRecipePaths } from '../recipe/recipePaths.ts'
import { resolveModel } from '../runtime/resolveModel.ts'
import { localData, type LocalData } from '../train/hubSources.ts'
import { diagnostic, problemOf } from './diagnostics.ts'
import type { ServeContext } from './serve.ts'

const defaultRows = 2000
const defaultCount = 10

interface Window {
  readonly key: string
  readonly dataset: Dataset
  readonly more: boolean
  /** Texts of the samples in lower case, made when somebody searches. */
  texts?: readonly string[]
}

/** Answers the editor's preview; keeps the last tokenizer and window of rows, so that turning a page reads nothing again. */
export class PreviewCache {
  private tokenizer: { readonly key: string; readonly loaded: Tokenizer } | undefined
  private window: Window | undefined

  async preview(params: PreviewParams, { signal }: Pick<ServeContext, 'signal'>): Promise<PreviewResult> {
    const {
      recipe: text,
      path = 'finetune.yaml',
      overrides = {},
      from = 0,
      count = defaultCount,
      search = '',
      filter = 'all',
      order = 'file',
    } = params
    const values: RecipeOverride[] = Object.entries(overrides).map(([key, value]) => ({ path: key, value, flag: key }))
    const { recipe, issues } = diagnoseRecipe(text, path, { overrides: values })
    const diagnostics = issues.map(diagnostic)
    if (recipe === null) return { diagnostics }
    try {
      const absolute = resolveRecipePaths(recipe, dirname(path))
      const { max_seq_length: maxSeqLength } = absolute.training
      const tokenizer = await this.tokenizerOf(absolute, signal)
      const window = await this.read(absolute, tokenizer, params, signal)
      const found = chosen(window, tokenizer, { search: search.toLowerCase(), filter, order, maxSeqLength })
      const preview = previewDataset(window.dataset, tokenizer, { samples: found.slice(from, from + count), maxSeqLength })
      return { diagnostics, preview, matching: found.length, more: window.more }
    } catch (error) {
      return { diagnostics: [...diagnostics, problemOf(error)] }
    }
  }

  private async tokenizerOf(recipe: Recipe, signal: AbortSignal): Promise<Tokenizer> {
    const { model } = recipe
    const options = await tokenizerOptions(recipe)
    const { folder } = await resolveModel(model.name, { revision: model.revision, signal })
    const key = JSON.stringify([folder, options])
    if (this.tokenizer?.key !== key) this.tokenizer = { key, loaded: await loadTokenizer(folder, options) }
    return this.tokenizer.loaded
  }

  /** The beginning of each source, mixed as in training. */
  private async readMixture(
    recipe: Recipe,
    tokenizer: Tokenizer,
    groups: LocalData['groups'],
    rows: number,
    signal: AbortSignal,
  ): Promise<Window> {
    const paths = groups ?? mixedPaths(recipe)
    const key = JSON.stringify([
      recipe.data,
      recipe.training,
      rows,
      this.tokenizer?.key,
      await Promise.all(paths.flat().map(stampOf)),
    ])
    if (this.window?.key === key) return this.window
    const { train } = await readRecipeData(
      { ...recipe, data: { ...recipe.data, eval_dataset: [], eval_split: null } },
      tokenizer,
      { groups: paths, rowsEach: Math.max(1, Math.floor(rows / paths.length)), signal },
    )
    this.window = { key, dataset: train, more: train.rows.rows >= rows - paths.length }
    return this.window
  }

  private async read(
    recipe: Recipe,
    tokenizer: Tokenizer,
    { rows = defaultRows, firstRow = 0 }: PreviewParams,
    signal: AbortSignal,
  ): Promise<Window> {
    const { data, groups } = await localData(recipe, undefined, { signal })
    const local = { ...recipe, data }
    if (data.mix_weights.length > 0) return this.readMixture(local, tokenizer, groups, rows, signal)
    const source = await trainingSource(local)
    const most = Math.min(rows, (source.maxSamples ?? Infinity) - firstRow)
    const options = { ...(await datasetOptions(local)), ...source, skipRows: firstRow, maxSamples: Math.max(0, most) }
    const key = JSON.stringify([options, this.tokenizer?.key, await Promise.all(source.files.map(stampOf))])
    if (this.window?.key === key) return this.window
    const dataset = await buildDataset({ ...options, signal }, tokenizer)
    const full = dataset.rows.rows >= rows
    this.window = { key, dataset, more: full && (source.slice !== undefined || (await hasRow(source.files, firstRow + rows))) }
    return this.window
  }
}

async function hasRow(files: readonly string[], at: number): Promise<boolean> {
  const rows = readSourceRows(files, { from: at, to: at + 1 })
  const { done } = await rows.next()
  await rows.return(undefined)
  return done !== true
}

/** Changes when a file is written. */
const stampOf = (file: string): Promise<string> =>
  stat(file).then(
    ({ size, mtimeMs }) => `${size}:${mtimeMs}`,
    () => 'none',
  )

interface Choice {
  readonly search: string
  readonly filter: PreviewFilter
  readonly order: PreviewOrder
  readonly maxSeqLength: number
}

/** Numbers, from 0, of the samples that search and filter leave, in the order asked for. */
function chosen(window: Window, tokenizer: Tokenizer, { search, filter, order, maxSeqLength }: Choice): number[] {
  const { samples } = window.dataset
  if (search !== '') window.texts ??= samples.map(({ ids }) => tokenizer.decode(ids).toLowerCase())
  const kept = samples
    .map((_, index) => index)
    .filter((index) => {
      const sample = samples[index]!
      return (
        (search === '' || window.texts![index]!.includes(search)) &&
        (filter !== 'full' || fillsLimit(sample, maxSeqLength)) &&
        (filter !== 'problems' || sampleProblems(sample, tokenizer, maxSeqLength).length > 0)
      )
    })
  const rank = ranks[order]
  return rank === undefined ? kept : kept.sort((a, b) => rank(samples[a]!) - rank(samples[b]!) || a - b)
}

const ranks: Readonly<Record<PreviewOrder, ((sample: Dataset['samples'][number]) => number) | undefined>> = {
  file: undefined,
  longest: ({ ids }) => -ids.length,
  shortest: ({ ids }) => ids.length,
  leastTrained: ({ ids, labelled }) => labelled / ids.length,
}
