import { moduleChoice, targetModules, type Recipe } from '#shared/recipe.ts'
import { loraTraining, type PeftOptions } from '../patch/peftOptions.ts'
import type { LoraInit, PatchOptions, Training } from '../runtime/patchedModel.ts'
import { int8, nf4 } from '../runtime/quantisedWeights.ts'
import type { HostWeight } from '../runtime/weightArena.ts'
import { optimizerKinds } from './optimizerState.ts'
import type { TrainingPlanOptions } from './trainingPlan.ts'

/** Methods that are refused before have no meaning here. */
function initOf({ init_lora_weights: init, use_loftq: loftq }: Recipe['lora']): LoraInit {
  if (loftq) return 'loftq'
  return init === 'gaussian' || init === 'pissa' || init === 'loftq' ? init : init !== false
}

/** The adapters that a recipe asks for, on a model of so many layers. */
export function peftOptions(recipe: Recipe, layers: number): PeftOptions {
  const { training, lora } = recipe
  return {
    r: lora.lora_r,
    loraAlpha: lora.lora_alpha,
    loraDropout: lora.lora_dropout,
    useRslora: lora.use_rslora,
    useDora: lora.use_dora,
    initLoraWeights: initOf(lora),
    bias: lora.bias,
    modulesToSave: lora.modules_to_save ?? [],
    targetModules: targetModules(recipe),
    ...(lora.exclude_modules.length === 0 ? {} : { excludeModules: moduleChoice(lora.exclude_modules) }),
    ...(lora.layers_pattern.length === 0 ? {} : { layersPattern: lora.layers_pattern }),
    ...(lora.target_parameters.length === 0 ? {} : { targetParameters: lora.target_parameters }),
    rankPattern: lora.rank_pattern,
    alphaPattern: lora.alpha_pattern,
    loraPlus: lora.loraplus_lr_ratio !== null,
    embeddingLearningRate: training.embedding_learning_rate !== null,
    ...chosenLayers(recipe, layers),
  }
}

/** How a recipe keeps what it does not train. */
export function frozenWeights({ model, training }: Recipe): Pick<PatchOptions, 'weightType' | 'quantisation' | 'hostWeights'> {
  return {
    hostWeights: hostWeights(training),
    ...(model.dtype === 'auto'
      ? {}
      : { weightType: ({ bfloat16: 'bf16', float16: 'f16', float32: 'f32' } as const)[model.dtype] }),
    ...(training.load_in_4bit ? { quantisation: nf4 } : training.load_in_8bit ? { quantisation: int8 } : {}),
  }
}

/** The frozen weights that a recipe keeps in memory of the system. */
export const hostWeights = ({ offload_embedding: embedding, offload_lm_head: head }: Recipe['training']): HostWeight[] => [
  ...(embedding ? ['embedding' as const] : []),
  ...(head ? ['head' as const] : []),
]

/** What a recipe says of the plan of its steps. */
export function planOptions({
  training,
}: Recipe): Pick<TrainingPlanOptions, 'checkpointing' | 'optimizer' | 'paged' | 'neftune' | 'maxBytes'> {
  return {
    checkpointing: training.gradient_checkpointing,
    optimizer: optimizerKinds[training.optim]!,
    paged: training.optim.startsWith('paged_'),
    neftune: training.neftune_noise_alpha ?? 0,
    ...(training.max_memory === null ? {} : { maxBytes: Math.floor(training.max_memory * 2 ** 30) }),
  }
}

/** What a recipe trains. */
export function trainingOf(recipe: Recipe, layers: number): Training {
  return recipe.training.training_type === 'full' ? { kind: 'full' } : loraTraining(peftOptions(recipe, layers))
}

/** The layers that the recipe names, or the last ones when it counts from the end. */
function chosenLayers({ lora }: Recipe, layers: number): { layersToTransform?: readonly number[] } {
  const { layers_to_transform: named, finetune_last_n_layers: last } = lora
  if (named !== null) return { layersToTransform: named }
  if (last === null) return {}
  const count = Math.min(last, layers)
  return { layersToTransform: Array.from({ length: count }, (_, index) => layers - count + index) }
}
