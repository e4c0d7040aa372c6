import { copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { openPeftAdapter } from '../io/peftAdapter.ts'
import { writeSafetensors } from '../io/safetensorsWriter.ts'
import { openTensorSource, readFloat32, readTensorBytes, requireTensor, type TensorLocation } from '../io/tensorSource.ts'
import type { LoadedModel } from '../runtime/loadedModel.ts'
import { floatBytes, writeAdapterFiles } from '../save/saveAdapter.ts'
import { momentArenas, type MomentArena, type Trainer } from './trainer.ts'

const optimizerFile = 'optimizer.safetensors'
/** Of runs with loss scaling: the scale, good steps since it changed, skipped steps. */
const lossScaleTensor = 'loss_scale'

/**
 * Everything that training needs to go on as if it had never stopped, into an existing folder: the trained matrices in fp32 (a
 * PEFT adapter, or a whole model), the optimizer's moments and the loss scale. Order of data and dropout are functions of the seed and the step.
 */
export async function writeCheckpoint(trainer: Trainer, folder: string): Promise<void> {
  const { model } = trainer
  if (model.patched.training.kind === 'lora') await writeAdapterFiles(model, folder)
  else {
    const tensors = model.patched.layout.parameters.map(({ name, shape }) => ({
      name,
      dtype: 'F32' as const,
      shape,
      data: () => floatBytes(model.readParameter(name)),
    }))
    await writeSafetensors(join(folder, 'model.safetensors'), tensors)
    await copyFile(join(model.patched.model.folder, 'config.json'), join(folder, 'config.json'))
  }
  // Moments of 32 bits are numbers to other programs, too; those of 8 bits are codes with their maxima behind them.
  const plain = trainer.optimizerKind === 'adamw'
  const moments = [...trainer.readMoments()].map(([name, bytes]) => ({
    name,
    dtype: plain ? ('F32' as const) : ('U8' as const),
    shape: [plain ? bytes.length / 4 : bytes.length],
    data: bytes,
  }))
  const scaling = trainer.readLossScale()
  const scale =
    scaling === undefined
      ? []
      : [
          {
            name: lossScaleTensor,
            dtype: 'F64' as const,
            shape: [3],
            data: new Uint8Array(Float64Array.of(scaling.scale, scaling.goodSteps, scaling.skipped).buffer),
          },
        ]
  await writeSafetensors(join(folder, optimizerFile), [...moments, ...scale], {
    metadata: { format: 'pt', optimizer: trainer.optimizerKind },
  })
}

/** Puts a checkpoint's matrices and moments back. */
export async function restoreCheckpoint(trainer: Trainer, folder: string): Promise<void> {
  await restoreParameters(trainer.model, folder)
  const source = await openTensorSource(join(folder, optimizerFile))
  const kind = source.metadata.get('optimizer') ?? 'adamw'
  if (kind !== trainer.optimizerKind)
    throw new UnslothError(
      'RUN_INVALID',
      `${source.path}: the moments are those of ${kind}, but this recipe trains with ${trainer.optimizerKind}.`,
      { hint: 'Set training.optim to what the checkpoint was made with.' },
    )
  const moments = new Map<MomentArena, Uint8Array>()
  for (const arena of momentArenas) {
    const bytes = trainer.model.runtime.bytesOf(arena)
    if (bytes === 0) continue
    const tensor = requireTensor(source, arena)
    if (tensor.bytes !== bytes)
      throw new UnslothError(
        'RUN_INVALID',
        `${source.path}: ${arena} has ${tensor.bytes} bytes, but this recipe needs ${bytes}.`,
        { hint: 'The checkpoint belongs to another recipe.' },
      )
    moments.set(arena, await readTensorBytes(tensor))
  }
  trainer.writeMoments(moments)
  const scaling = source.tensors.get(lossScaleTensor)
  if (scaling === undefined || trainer.readLossScale() === undefined) return
  if (scaling.dtype !== 'F64' || scaling.bytes !== 24)
    throw new UnslothError(
      'RUN_INVALID',
      `${source.path}: ${lossScaleTensor} is ${scaling.dtype}[${scaling.shape.join(', ')}], expected F64[3].`,
      { hint: 'Resume from an earlier checkpoint.' },
    )
  const bytes = await readTensorBytes(scaling)
  const [scale, goodSteps, skipped] = new Float64Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + 24))
  trainer.writeLossScale({ scale: scale!, goodSteps: goodSteps!, skipped: skipped! })
}

/** Loads trained matrices from an adapter folder, or from a checkpoint of a full fine-tune. */
export async function restoreParameters(model: LoadedModel, folder: string): Promise<void> {
  const find =
    model.patched.training.kind === 'lora' ? await adapterTensors(folder, model) : (await openTensorSource(folder)).tensors
  for (const { name, shape } of model.patched.layout.parameters) {
    const tensor = find.get(name)
    if (tensor === undefined)
      throw new UnslothError('MODEL_INVALID', `${folder}: ${name} is missing.`, {
        hint: 'lora.target_modules and lora.modules_to_save must be those the adapter was made with.',
      })
    if (tensor.shape.join() !== shape.join())
      throw new UnslothError(
        'MODEL_INVALID',
        `${folder}: ${name} has shape [${tensor.shape.join(', ')}], but this recipe needs [${shape.join(', ')}].`,
        { hint: 'lora.lora_r must be that of the adapter, and the base model the same.' },
      )
    model.writeParameter(name, await readFloat32(tensor))
  }
}

/** Of a checkpoint of `pissa` only on weights that have started so, too. */
async function adapterTensors(
  folder: string,
  { starts, patched: { training } }: LoadedModel,
): Promise<Map<string, TensorLocation>> {
  const adapter = await openPeftAdapter(folder, starts.size > 0)
  const dora = training.kind === 'lora' && training.dora === true
  if (adapter.config.dora !== dora)
    throw new UnslothError(
      'MODEL_INVALID',
      `${folder}: the adapter has use_dora: ${adapter.config.dora}, but this recipe trains with ${dora}.`,
      { hint: `Set lora.use_dora: ${adapter.config.dora}.` },
    )
  const tensors = new Map(adapter.saved)
  for (const { module, a, b, magnitude } of adapter.modules.values()) {
    tensors.set(`${module}.lora_A.weight`, a)
    tensors.set(`${module}.lora_B.weight`, b)
    if (magnitude !== undefined) tensors.set(`${module}.lora_magnitude_vector`, magnitude)
  }
  return tensors
}
