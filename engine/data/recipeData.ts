import { readFile } from 'node:fs/promises'
import { UnslothError } from '#shared/errors.ts'
import type { Recipe } from '#shared/recipe.ts'
import { readError } from '../io/fileSystem.ts'
import { decodeUtf8 } from '../io/jsonText.ts'
import { physicalCores } from '../runtime/cores.ts'
import { dataCacheFolder, totalBytes } from './dataCache.ts'
import { buildDataset, splitDataset, type Dataset, type DatasetOptions } from './dataset.ts'
import { datasetFiles } from './datasetFiles.ts'
import { joinDatasets, mixDatasets } from './mixSources.ts'
import { parseSplit } from './splits.ts'
import { datasetStatistics } from './statistics.ts'
import { isTemplateText } from './chatTemplate.ts'
import { namedTemplate, stopTokenOf } from './namedTemplates.ts'
import type { Tokenizer, TokenizerOptions } from './tokenizer.ts'

/** What a recipe trains and evaluates on. */
export interface RecipeData {
  readonly train: Dataset
  readonly evaluation: Dataset | undefined
}

export interface RecipeDataOptions {
  readonly signal?: AbortSignal
  /** The run's start, which chat templates may ask for. */
  readonly now?: Date
  readonly onRows?: (rows: number) => void
  /** Paths of each source of a mixture, where they are not those that the recipe names. */
  readonly groups?: readonly (readonly string[])[] | undefined
  /** Rows to take of each source of a mixture, at most. */
  readonly rowsEach?: number
}

/** Smaller files are encoded sooner than threads have loaded the tokenizer, and need no cache. */
const threadsFrom = 64 * 2 ** 20
const cacheFrom = 2 ** 20
const mostThreads = 8

const partText = (text: string): string => text.replaceAll('\\n', '\n')

/** `data.chat_template` as a template or a name: a path is read. */
async function chatTemplate({ data }: Recipe): Promise<string | undefined> {
  const given = data.chat_template
  if (given === null) return undefined
  if (/[{}\n]/.test(given) || !/[/\\]/.test(given)) return given
  const bytes = await readFile(given).catch((error: unknown) => {
    throw readError(error, given, 'chat template')
  })
  const text = decodeUtf8(bytes)
  if (text === undefined)
    throw new UnslothError('DATA', `${given}: not UTF-8 text.`, { hint: 'Save the chat template as UTF-8.' })
  return text
}

/** How the tokenizer differs from its files by what a recipe says. */
export async function tokenizerOptions(recipe: Recipe): Promise<TokenizerOptions> {
  const given = await chatTemplate(recipe)
  const source = given === undefined ? undefined : (namedTemplate(given) ?? (isTemplateText(given) ? given : undefined))
  const stop = given !== undefined && recipe.data.map_eos_token ? stopTokenOf(given) : undefined
  return {
    ...(!recipe.model.fix_tokenizer && { fix: false }),
    ...(source !== undefined && { chatTemplate: source }),
    ...(stop !== undefined && { stopToken: stop }),
  }
}

/** All that a recipe says about how rows become samples. */
export async function datasetOptions(recipe: Recipe): Promise<Omit<DatasetOptions, 'files'>> {
  const { data, training } = recipe
  const template = await chatTemplate(recipe)
  const { instruction_part: instruction, response_part: response } = data
  return {
    maxSeqLength: training.max_seq_length,
    format: data.format_type,
    columns: columnsOf(recipe),
    trainOnCompletions: training.train_on_completions,
    trainOnPrompt: data.train_on_prompt,
    lastResponseOnly: data.last_response_only,
    tooLong: data.too_long,
    skipBadRows: data.skip_bad_rows,
    chunkSize: data.chunk_size,
    stride: data.stride,
    conversationExtension: data.conversation_extension,
    seed: training.random_seed,
    ...(template !== undefined && { chatTemplate: template }),
    ...(data.merged_prompt !== null && { mergedPrompt: partText(data.merged_prompt) }),
    ...(instruction !== null &&
      response !== null && { markers: { instruction: partText(instruction), response: partText(response), end: '' } }),
  }
}

/** `data.columns`, and `data.text_column` where it says nothing else. */
function columnsOf({ data }: Recipe): Record<string, string> {
  const given = Object.entries(data.columns).filter((entry): entry is [string, string] => entry[1] !== undefined)
  return { ...(data.text_column === 'text' ? {} : { text: data.text_column }), ...Object.fromEntries(given) }
}

/** Threads and cache, by the size of the files. */
async function effort(files: readonly string[]): Promise<Pick<DatasetOptions, 'threads' | 'cacheFolder'>> {
  const bytes = await totalBytes(files)
  return {
    threads: bytes < threadsFrom ? 0 : Math.max(1, Math.min(mostThreads, physicalCores())),
    ...(bytes < cacheFrom || process.env.UNSLOTH_DATA_CACHE === '0' ? {} : { cacheFolder: dataCacheFolder() }),
  }
}

/** Paths that a recipe trains on: files or folders. */
export const trainingPaths = ({ data }: Recipe): readonly string[] =>
  data.local_dataset.length > 0 ? data.local_dataset : data.dataset === null ? [] : [data.dataset]

/** The rows that a recipe trains on: files, and the slice of them. */
export async function trainingSource(recipe: Recipe): Promise<Pick<DatasetOptions, 'files' | 'slice' | 'maxSamples'>> {
  const { name, ...slice } = parseSplit(recipe.data.split)
  const { max_samples: most } = recipe.data
  return {
    files: await datasetFiles(trainingPaths(recipe), name),
    ...('from' in slice || 'to' in slice ? { slice: { name, ...slice } } : {}),
    ...(most === null ? {} : { maxSamples: most }),
  }
}

/** The sources that a recipe mixes: the paths of each. */
export const mixedPaths = ({ data }: Recipe): readonly (readonly string[])[] =>
  [...(data.dataset === null ? [] : [data.dataset]), ...data.local_dataset].map((path) => [path])

/** When a streamed recipe has all that it trains. */
function enoughOf({ data, training }: Recipe): DatasetOptions['enough'] {
  if (!data.streaming) return undefined
  const rows = training.max_steps * training.batch_size * training.gradient_accumulation_steps
  const held = typeof data.eval_split === 'number' && data.eval_split >= 1 ? data.eval_split : 0
  const share = typeof data.eval_split === 'number' && data.eval_split < 1 ? 1 / (1 - data.eval_split) : 1
  const wanted = Math.ceil(rows * share) + held
  return training.packing ? (_, tokens) => tokens >= wanted * training.max_seq_length : (samples) => samples >= wanted
}

type Read = (source: Pick<DatasetOptions, 'files'> & Partial<DatasetOptions>) => Promise<Dataset>

/** Reads what a recipe trains and evaluates on. */
export async function readRecipeData(
  recipe: Recipe,
  tokenizer: Tokenizer,
  { groups, rowsEach, ...options }: RecipeDataOptions = {},
): Promise<RecipeData> {
  const { data, training } = recipe
  const common = { ...(await datasetOptions(recipe)), ...options }
  const read: Read = async (source) => buildDataset({ ...common, ...source, ...(await effort(source.files)) }, tokenizer)
  const held = await heldOut(recipe, groups, read)
  if (data.mix_weights.length > 0) return readMixture(recipe, groups ?? mixedPaths(recipe), rowsEach, read, held)
  const enough = enoughOf(recipe)
  const train = await read({ ...(await trainingSource(recipe)), ...(enough && { enough }) })
  if (held !== undefined || typeof data.eval_split !== 'number') return { train, evaluation: held }
  const split = splitDataset(train, data.eval_split, training.random_seed)
  // Both halves come from one reading, whose warnings are told once.
  return { train: split.train, evaluation: { ...split.evaluation, warnings: [] } }
}

/** Data for evaluation that have files or a split of their own. */
async function heldOut(recipe: Recipe, groups: RecipeDataOptions['groups'], read: Read): Promise<Dataset | undefined> {
  const { eval_dataset: files, eval_split: split } = recipe.data
  const slice = typeof split === 'string' ? parseSplit(split) : undefined
  const sliced = slice !== undefined && (slice.from ?? slice.to) !== undefined ? { slice } : {}
  if (files.length > 0) return read({ files: await datasetFiles(files, 'train'), ...sliced })
  if (slice === undefined) return undefined
  if (recipe.data.mix_weights.length === 0)
    return read({ files: await datasetFiles(trainingPaths(recipe), slice.name), ...sliced })
  const parts: Dataset[] = []
  for (const paths of groups ?? mixedPaths(recipe))
    parts.push(await read({ files: await datasetFiles(paths, slice.name), ...sliced }))
  return joinDatasets(parts)
}

/** Each source is read by itself, in its own format; what is held out of it is not mixed in. */
async function readMixture(
  recipe: Recipe,
  groups: readonly (readonly string[])[],
  rowsEach: number | undefined,
  read: Read,
  held: Dataset | undefined,
): Promise<RecipeData> {
  const {
    data,
    training: { random_seed: seed },
  } = recipe
  const { name, ...slice } = parseSplit(data.split)
  const share = data.mix_weights.reduce((sum, weight) => sum + weight, 0)
  const parts: { name: string; dataset: Dataset; weight: number; evaluation: Dataset | undefined }[] = []
  for (const [index, paths] of groups.entries()) {
    const weight = data.mix_weights[index]!
    const dataset = await read({
      files: await datasetFiles(paths, name),
      ...('from' in slice || 'to' in slice ? { slice: { name, ...slice } } : {}),
      ...(rowsEach !== undefined && { maxSamples: rowsEach }),
    })
    const { eval_split: split } = data
    const cut =
      held !== undefined || typeof split !== 'number'
        ? undefined
        : splitDataset(dataset, split < 1 ? split : Math.max(1, Math.round((split * weight) / share)), seed)
    parts.push({ name: paths.join(', '), dataset: cut?.train ?? dataset, weight, evaluation: cut?.evaluation })
  }
  const mixed = mixDatasets(parts, data.mix_until, seed)
  const { max_samples: most } = data
  const samples = most === null ? mixed.samples : mixed.samples.slice(0, most)
  const train = samples.length === mixed.samples.length ? mixed : { ...mixed, samples, statistics: datasetStatistics(samples) }
  const evaluations = parts.flatMap(({ evaluation }) => evaluation ?? [])
  return { train, evaluation: held ?? (evaluations.length === 0 ? undefined : { ...joinDatasets(evaluations), warnings: [] }) }
}
