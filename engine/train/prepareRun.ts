import { join, resolve } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { effectiveBatch, totalSteps, type Recipe } from '#shared/recipe.ts'
import { formatCompact, formatCount } from '#shared/units.ts'
import type { Dataset } from '../data/dataset.ts'
import { readRecipeData, tokenizerOptions } from '../data/recipeData.ts'
import { lengthOf, type Sample } from '../data/sample.ts'
import { tokenizerWarnings, untrainedInUse } from '../data/tokenizerDoctor.ts'
import { FastLanguageModel } from '../fastLanguageModel.ts'
import { paddedCapacity } from '../graph/padding.ts'
import type { HubOptions } from '../hub/snapshot.ts'
import type { HubProgress } from '../hub/transferProgress.ts'
import { parameterCount } from '../model/weightTable.ts'
import { latestCheckpoint, readCheckpoint, type CheckpointInfo } from '../run/checkpoints.ts'
import { listRuns } from '../run/runReader.ts'
import { chooseDevice, freeBytes, freeHostBytes } from '../runtime/chooseDevice.ts'
import { gpuOverhead } from '../runtime/gpuOverhead.ts'
import { usableShare } from '../runtime/memory.ts'
import type { DeviceChoice } from '../runtime/runtime.ts'
import { evaluationBatches, TrainingBatches } from './batches.ts'
import { localData, type HubSources } from './hubSources.ts'
import { hostWeights, peftOptions, planOptions } from './recipeTraining.ts'
import type { LossBatch } from './trainer.ts'
import { planTraining, type TrainingPlan, type TrainingPlanOptions } from './trainingPlan.ts'

/** A run as far as it is decided before weights are read: enough for a dry run, and for training without further decisions. */
export interface PreparedRun {
  /** Patched, not loaded. */
  readonly model: FastLanguageModel
  readonly plan: TrainingPlan
  readonly samples: readonly Sample[]
  readonly totalSteps: number
  /** The micro-steps of an optimizer step, counted from 0. */
  batches(step: number): LossBatch[]
  /** Tokens of the first so many steps. */
  tokensOf(steps: number): number
  /** Epochs done after so many steps. */
  epochOf(steps: number): number
  readonly evaluation: Iterable<LossBatch> | undefined
  /** Adapter folder to begin with, when the model itself is not one. */
  readonly initAdapter: string | undefined
  /** Checkpoint of another run to go on from. */
  readonly resumeFrom: CheckpointInfo | undefined
  /** Repositories of the Hub that it uses. */
  readonly sources: HubSources
  /** Tokens of the data whose rows were never trained and are to be filled, with how often the data use them. */
  readonly untrained: ReadonlyMap<number, number>
  /** For people: model, data, steps, what is trained, memory. */
  readonly summaryLines: readonly string[]
  readonly warnings: readonly string[]
}

export interface PrepareOptions {
  /** Stops the preparation with STOPPED. */
  readonly signal?: AbortSignal
  /** The run's start, which chat templates may ask for: a resumed run gets the same data. */
  readonly now?: Date
  /** Told while model and data are fetched from the Hub. */
  readonly onDownload?: (progress: HubProgress) => void
  /** What the run began with, when it goes on. */
  readonly sources?: HubSources
  /** Default: what the recipe names. */
  readonly device?: DeviceChoice
}

/** Reads and checks everything but the weights: model, tokenizer, data, plan. */
export async function prepareRun(
  asked: Recipe,
  {
    onDownload,
    sources = {},
    device = chooseDevice(asked.training.device, asked.training.threads),
    ...options
  }: PrepareOptions = {},
): Promise<PreparedRun> {
  const { training } = asked
  const notices: string[] = []
  const hub = { signal: options.signal, onProgress: onDownload, onNotice: (notice: string) => notices.push(notice) }
  const model = await patchedModel(asked, device, sources.model, hub)
  const { data, source, groups } = await localData(asked, sources.dataset, hub)
  const recipe = { ...asked, data }
  const { patched } = model
  const { train, evaluation } = await readRecipeData(recipe, model.tokenizer, { ...options, groups })
  const batches = new TrainingBatches(train.samples, {
    batchSize: training.batch_size,
    gradientAccumulation: training.gradient_accumulation_steps,
    seed: training.random_seed,
    shuffle: recipe.data.shuffle,
    ...(training.packing ? { packing: { rowTokens: training.max_seq_length } } : {}),
  })
  const steps = totalSteps(recipe, batches.count)
  if (steps === 0) throw new UnslothError('RECIPE', 'training.num_epochs and training.max_steps leave no step to take.')
  const longest = (samples: readonly Sample[]) => samples.reduce((most, sample) => Math.max(most, lengthOf(sample)), 0)
  const asking: TrainingPlanOptions = {
    ...planOptions(recipe),
    threads: model.device.kind === 'cpu' ? model.device.threads : 1,
    longestSample: Math.max(longest(train.samples), longest(evaluation?.samples ?? [])),
    longestStep: batches.longestStep,
    sequences: batches.mostSequences,
    evaluates: evaluation !== undefined,
    availableBytes: Math.floor(freeBytes(model.device) * usableShare),
    availableHostBytes: Math.floor(freeHostBytes(model.device) * usableShare),
    gpuOverhead: await gpuOverhead(model.device),
  }
  const plan = planWithGraphs(patched, asking, batches, steps)
  const capacity = plan.training.capacity
  const untrained = recipe.model.fix_tokenizer ? await untrainedInUse(model.tokenizer, train.samples) : new Map<number, number>()
  return {
    untrained: trainsEmbeddings(recipe) ? untrained : new Map(),
    model,
    plan,
    samples: train.samples,
    totalSteps: steps,
    batches: (step) => batches.microSteps(step, [capacity]),
    tokensOf: (done) => sum(Array.from({ length: done }, (_, step) => sum(batches.samplesOf(step).map(({ ids }) => ids.length)))),
    epochOf: (done) => (done === 0 ? 0 : batches.order.step(done - 1).epochAfter),
    evaluation: evaluation === undefined ? undefined : evaluationBatches(evaluation.samples, [capacity]),
    initAdapter: recipe.lora.init_adapter ?? undefined,
    resumeFrom: await checkpointToResume(recipe),
    summaryLines: summary(recipe, { model: model.hub, dataset: source }, patched, train, steps, batches, [
      ...model.patchReport,
      plan.summary,
    ]),
    sources: { model: model.hub, dataset: source },
    warnings: [
      ...model.warnings,
      ...patched.arena.notes,
      ...notices,
      ...tokenizerWarnings(model.tokenizer, untrained, trainsEmbeddings(recipe)),
      ...train.warnings,
      ...(evaluation?.warnings ?? []).map((warning) => `evaluation: ${warning}`),
      ...stepWarnings(recipe, steps),
    ],
  }
}

async function patchedModel(
  recipe: Recipe,
  device: DeviceChoice,
  pinned: HubSources['model'],
  hub: HubOptions,
): Promise<FastLanguageModel> {
  const { training } = recipe
  const named =
    pinned === undefined
      ? { modelName: recipe.model.name, revision: recipe.model.revision }
      : { modelName: pinned.id, revision: pinned.commit }
  const model = await FastLanguageModel.fromPretrained({
    ...named,
    useExactModelName: recipe.model.use_exact_model_name,
    signal: hub.signal,
    onDownload: hub.onProgress,
    maxSeqLength: training.max_seq_length,
    fullFinetuning: training.training_type === 'full',
    fixTokenizer: recipe.model.fix_tokenizer,
    chatTemplate: await tokenizerOptions(recipe),
    randomState: training.random_seed,
    dtype: recipe.model.dtype,
    compute: training.compute,
    device,
    loadIn4bit: training.load_in_4bit,
    loadIn8bit: training.load_in_8bit,
    hostWeights: hostWeights(training),
  })
  if (training.training_type === 'full') return model
  return model.getPeftModel(peftOptions(recipe, model.patched.model.spec.layers))
}

/** Steps whose row counts are looked at. */
const countedSteps = 256

/**
 * A plan for a GPU counts a graph for each row count that recurs, and what recurs depends on the size of micro-steps. Only the few
 * commands of labelled rows are recorded for each count of those.
 */
function planWithGraphs(
  patched: FastLanguageModel['patched'],
  options: TrainingPlanOptions,
  batches: TrainingBatches,
  steps: number,
): TrainingPlan {
  const plan = planTraining(patched, options)
  if (patched.target.kind === 'cpu') return plan
  const { rowMultiple, capacity } = plan.training
  const seen = new Map<string, number>()
  for (let step = 0; step < Math.min(steps, countedSteps); ++step) {
    for (const { ids, kvLength } of batches.microSteps(step, [capacity])) {
      const { tokens, sequences } = paddedCapacity({ tokens: ids.length, labelled: 0, sequences: kvLength.length }, rowMultiple)
      const key = `${tokens},${sequences}`
      seen.set(key, (seen.get(key) ?? 0) + 1)
    }
  }
  const graphs = [...seen.values()].filter((count) => count > 1).length
  return graphs <= 1 ? plan : planTraining(patched, { ...options, graphs })
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0)

/** Whether rows of the embedding can still change. */
const trainsEmbeddings = ({ training, lora }: Recipe): boolean =>
  training.training_type === 'full' || lora.modules_to_save.includes('embed_tokens')

async function checkpointToResume({ training }: Recipe): Promise<CheckpointInfo | undefined> {
  if (training.resume_from === null) return undefined
  if (training.resume_from === 'latest') {
    const runs = await listRuns(training.output_dir)
    const found = runs.map(({ dir }) => latestCheckpoint(dir)).find((checkpoint) => checkpoint !== undefined)
    if (found !== undefined) return found
    throw new UnslothError('RUN_INVALID', `training.resume_from: no run below ${training.output_dir} has a checkpoint.`, {
      hint: 'Name a checkpoint folder, or remove the key.',
    })
  }
  const path = resolve(training.resume_from)
  const found = readCheckpoint(path) ?? latestCheckpoint(path)
  if (found === undefined)
    throw new UnslothError('RUN_INVALID', `training.resume_from: ${path} is no complete checkpoint.`, {
      hint: `Checkpoints stand in ${join('RUN', 'checkpoints')}.`,
    })
  return found
}

function stepWarnings(recipe: Recipe, steps: number): string[] {
  const { warmup_steps, warmup_ratio } = recipe.training
  return warmup_ratio === null && warmup_steps >= steps
    ? [
        `training.warmup_steps (${warmup_steps}) is not below the ${steps} steps of this run, so the learning rate never reaches its peak.`,
      ]
    : []
}

/** " at commit 1a2b3c4d" of a repository of the Hub. */
const at = (source: HubSources['model']): string => (source === undefined ? '' : ` at commit ${source.commit.slice(0, 8)}`)

function summary(
  recipe: Recipe,
  sources: HubSources,
  patched: FastLanguageModel['patched'],
  train: Dataset,
  steps: number,
  batches: TrainingBatches,
  lines: readonly string[],
): string[] {
  const { spec, entries } = patched.model
  const trained = patched.layout.parameters.reduce((sum, { rows, cols }) => sum + rows * cols, 0)
  const total = parameterCount(entries)
  const tokens = train.statistics.tokens
  return [
    `model: ${recipe.model.name}${at(sources.model)} (${spec.architecture}, ${formatCompact(total)} parameters, ${spec.layers} layers)`,
    `data: ${sources.dataset === undefined ? '' : `${sources.dataset.id}${at(sources.dataset)}, `}${formatCount(train.samples.length)} samples, ${formatCount(tokens)} tokens; ${train.format.format}: ${train.format.reason}`,
    `steps: ${steps} of ${effectiveBatch(recipe)} ${recipe.training.packing ? 'packed rows' : 'samples'} each, ${batches.order.stepsPerEpoch} an epoch`,
    `trained: ${formatCompact(trained)} parameters (${((100 * trained) / total).toFixed(2)} %)`,
    ...lines,
  ]
}
