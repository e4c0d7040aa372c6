import { dirname } from 'node:path'
import type { PreviewParams, PreviewResult } from '#shared/protocol.ts'
import type { Recipe, RecipeOverride } from '#shared/recipe.ts'
import { buildDataset, type Dataset } from '../data/dataset.ts'
import { previewDataset } from '../data/preview.ts'
import { datasetOptions, trainingSource } from '../data/recipeData.ts'
import { loadTokenizer, type Tokenizer } from '../data/tokenizer.ts'
import { diagnoseRecipe } from '../recipe/parseRecipe.ts'
import { resolveRecipePaths } from '../recipe/recipePaths.ts'
import { resolveModel } from '../runtime/resolveModel.ts'
import { diagnostic, problemOf } from './diagnostics.ts'
import { localData } from '../train/hubSources.ts'
import type { ServeContext } from './serve.ts'

const defaultRows = 2000
const defaultCount = 10

/** Answers the editor's preview; keeps the last tokenizer and data, so that turning a page reads nothing again. */
export class PreviewCache {
  private tokenizer: { readonly folder: string; readonly loaded: Tokenizer } | undefined
  private data: { readonly key: string; readonly dataset: Dataset; readonly more: boolean } | undefined

  async preview({ recipe: text, path = 'finetune.yaml', overrides = {}, from = 0, count = defaultCount, rows = defaultRows, search }: PreviewParams, { signal }: ServeContext): Promise<PreviewResult> {
    const values: RecipeOverride[] = Object.entries(overrides).map(([key, value]) => ({ path: key, value, flag: key }))
    const { recipe, issues } = diagnoseRecipe(text, path, { overrides: values })
    const diagnostics = issues.map(diagnostic)
    if (recipe === null) return { diagnostics }
    try {
      const absolute = resolveRecipePaths(recipe, dirname(path))
      const tokenizer = await this.tokenizerOf(absolute, signal)
      const { dataset, more } = await this.read(absolute, tokenizer, rows, signal)
      const numbers = search === undefined || search === ''
        ? dataset.samples.map((_, index) => index)
        : dataset.samples.flatMap(({ ids }, index) => (tokenizer.decode(ids).toLowerCase().includes(search.toLowerCase()) ? [index] : []))
      const preview = previewDataset(dataset, tokenizer, { samples: numbers.slice(from, from + count), maxSeqLength: absolute.training.max_seq_length })
      return { diagnostics, preview, more }
    } catch (error) {
      return { diagnostics: [...diagnostics, problemOf(error)] }
    }
  }

  private async tokenizerOf({ model }: Recipe, signal: AbortSignal): Promise<Tokenizer> {
    const { folder } = await resolveModel(model.name, { revision: model.revision, signal })
    if (this.tokenizer?.folder !== folder) this.tokenizer = { folder, loaded: await loadTokenizer(folder, model.fix_tokenizer ? {} : { fix: false }) }
    return this.tokenizer.loaded
  }

  private async read(recipe: Recipe, tokenizer: Tokenizer, rows: number, signal: AbortSignal): Promise<{ dataset: Dataset; more: boolean }> {
    const { data } = await localData(recipe, undefined, { signal })
    const local = { ...recipe, data }
    const source = await trainingSource(local)
    const options = { ...(await datasetOptions(local)), ...source, maxSamples: Math.min(rows, source.maxSamples ?? Infinity) }
    const key = JSON.stringify([options, tokenizer.folder])
    // A file that is being written is read again when the editor asks anew with another count of rows; pages come from here.
    if (this.data?.key === key) return this.data
    const dataset = await buildDataset({ ...options, signal }, tokenizer)
    this.data = { key, dataset, more: dataset.rows.rows >= rows }
    return this.data
  }
}
