import type { DeviceEntry } from '#shared/protocol.ts'
import { effectiveBatch, hasEvalSet, type Recipe } from '#shared/recipe.ts'
import { UnslothError } from '#shared/errors.ts'
import { stepFlops } from '../../../engine/bench/flops.ts'
import { secondsPerToken, type SpeedFigure } from '../../../engine/bench/speedFigures.ts'
import { cpuTarget, cudaTarget, type Target } from '../../../engine/graph/target.ts'
import { physicalCores } from '../../../engine/runtime/cores.ts'
import { availableMemory, usableShare } from '../../../engine/runtime/memory.ts'
import { parameterCount } from '../../../engine/model/weightTable.ts'
import { describeModel, patchModel, type ModelDescription } from '../../../engine/runtime/patchedModel.ts'
import { frozenWeights, planOptions, trainingOf } from '../../../engine/train/recipeTraining.ts'
import {
  planTraining,
  type Checkpointing,
  type TrainingPlan,
  type TrainingPlanOptions,
} from '../../../engine/train/trainingPlan.ts'
import type { RecipePlan } from '../workspace.ts'

export interface PlanRequest {
  readonly recipe: Recipe
  readonly folder: string
  /** Tokens of the longest sample, where the data were measured. */
  readonly longestSample: number | undefined
  /** Tokens of a usual sample, where the data were measured. */
  readonly usualSample: number | undefined
  readonly speeds: readonly SpeedFigure[]
  /** The device that the recipe would run on, as the engine names it. */
  readonly device: string
  readonly freeBytes: number | undefined
  readonly deviceBytes: number | undefined
  readonly overhead: DeviceEntry['overhead']
}

/** Number formats on a device; the engine itself takes float16 on GPUs that have no bfloat16. */
function targetOf(compute: string, device: string): Target {
  if (device.startsWith('cuda'))
    return cudaTarget(compute === 'float32' || compute === 'tfloat32' || compute === 'float16' ? compute : 'bfloat16')
  return cpuTarget(compute === 'bfloat16' ? 'bfloat16' : 'float32')
}

let latest: { readonly folder: string; readonly model: ModelDescription } | undefined

/** Memory and parameters of a recipe, by the engine's own planner; only headers of the model's files are read. */
export async function planRecipe(request: PlanRequest): Promise<RecipePlan> {
  const { recipe, folder } = request
  const { training } = recipe
  if (latest?.folder !== folder) latest = { folder, model: await describeModel(folder) }
  const { model } = latest
  const patched = patchModel(model, trainingOf(recipe, model.spec.layers), targetOf(training.compute, request.device), {
    embeddingRate: training.embedding_learning_rate !== null,
    loraPlus: recipe.lora.loraplus_lr_ratio !== null,
    ...frozenWeights(recipe),
  })
  const perStep = effectiveBatch(recipe)
  const longest = Math.min(training.max_seq_length, request.longestSample ?? training.max_seq_length)
  const row = training.packing ? training.max_seq_length : longest
  const perRow = training.packing ? Math.max(1, Math.ceil(row / Math.max(1, request.usualSample ?? row / 8))) : 1
  const options = planOptions(recipe)
  const plan = (checkpointing: Checkpointing, room?: Room): TrainingPlan =>
    planTraining(patched, {
      ...options,
      checkpointing,
      ...(room ?? { availableBytes: Infinity, maxBytes: Infinity }),
      longestSample: longest,
      longestStep: row * perStep,
      sequences: perRow * perStep,
      evaluates: hasEvalSet(recipe),
      gpuOverhead: request.overhead,
      threads: training.threads === 0 ? physicalCores() : training.threads,
    })
  const { totalBytes, parts, summary } = leastOrFitting(plan, training.gradient_checkpointing, request.freeBytes)
  const tokens = training.packing
    ? training.max_seq_length
    : Math.min(training.max_seq_length, request.usualSample ?? training.max_seq_length)
  const perToken = secondsPerToken(stepFlops(patched, tokens) / tokens, request.device, request.speeds)
  return {
    totalBytes,
    parts,
    summary,
    secondsPerStep: perToken === undefined ? undefined : perToken * tokens * perStep,
    freeBytes: request.freeBytes,
    deviceBytes: request.deviceBytes,
    trainableParameters: patched.layout.parameters.reduce((sum, { rows, cols }) => sum + rows * cols, 0),
    parameters: parameterCount(model.entries),
  }
}

/** What a plan may take of device and host. */
type Room = Pick<TrainingPlanOptions, 'availableBytes' | 'availableHostBytes'>

/** The plan that the engine would choose; when none fits, the smallest one, so that the figure can be told. */
function leastOrFitting(
  plan: (checkpointing: Checkpointing, room?: Room) => TrainingPlan,
  asked: Checkpointing,
  free: number | undefined,
): TrainingPlan {
  try {
    return plan(asked, {
      availableBytes: free === undefined ? Number.MAX_SAFE_INTEGER : Math.floor(free * usableShare),
      availableHostBytes: Math.floor(availableMemory() * usableShare),
    })
  } catch (error) {
    if (!UnslothError.is(error, 'MEMORY')) throw error
    return plan(asked === 'auto' ? 'full' : asked)
  }
}

/** Forgets the model that was read last: its files changed. */
export function forgetModel(): void {
  latest = undefined
}
