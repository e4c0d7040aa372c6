import { copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { openPeftAdapter } from '../io/peftAdapter.ts'
import { writeSafetensors } from '../io/safetensorsWriter.ts'
import { openTensorSource, readFloat32, requireTensor, type TensorLocation } from '../io/tensorSource.ts'
import type { LoadedModel } from '../runtime/loadedModel.ts'
import { floatBytes, writeAdapterFiles } from '../save/saveAdapter.ts'
import type { Trainer } from './trainer.ts'

const optimizerFile = 'optimizer.safetensors'

/**
 * Everything that training needs to go on as if it had never stopped, into an existing folder: the trained matrices in fp32 (a
 * PEFT adapter, or a whole model) and the optimizer's moments. Order of data and dropout are functions of the seed and the step.
 */
export async function writeCheckpoint(trainer: Trainer, folder: string): Promise<void> {
  const { model } = trainer
  if (model.patched.training.kind === 'lora') await writeAdapterFiles(model, folder)
  else {
    const tensors = model.patched.layout.parameters.map(({ name, shape }) => ({ name, dtype: 'F32' as const, shape, data: () => floatBytes(model.readParameter(name)) }))
    await writeSafetensors(join(folder, 'model.safetensors'), tensors)
    await copyFile(join(model.patched.model.folder, 'config.json'), join(folder, 'config.json'))
  }
  const { moment1, moment2 } = trainer.readMoments()
  await writeSafetensors(
    join(folder, optimizerFile),
    Object.entries({ moment1, moment2 }).map(([name, values]) => ({ name, dtype: 'F32' as const, shape: [values.length], data: floatBytes(values) })),
  )
}

/** Puts a checkpoint's matrices and moments back. */
export async function restoreCheckpoint(trainer: Trainer, folder: string): Promise<void> {
  await restoreParameters(trainer.model, folder)
  const source = await openTensorSource(join(folder, optimizerFile))
  const { elements } = trainer.model.patched.layout
  const read = async (name: string) => {
    const values = await readFloat32(requireTensor(source, name))
    if (values.length !== elements)
      throw new UnslothError('RUN_INVALID', `${source.path}: ${name} has ${values.length} numbers, but this recipe trains ${elements}.`, { hint: 'The checkpoint belongs to another recipe.' })
    return values
  }
  trainer.writeMoments({ moment1: await read('moment1'), moment2: await read('moment2') })
}

/** Loads trained matrices from an adapter folder, or from a checkpoint of a full fine-tune. */
export async function restoreParameters(model: LoadedModel, folder: string): Promise<void> {
  const find = model.patched.training.kind === 'lora' ? await adapterTensors(folder) : (await openTensorSource(folder)).tensors
  for (const { name, shape } of model.patched.layout.parameters) {
    const tensor = find.get(name)
    if (tensor === undefined)
      throw new UnslothError('MODEL_INVALID', `${folder}: ${name} is missing.`, { hint: 'lora.target_modules and lora.modules_to_save must be those the adapter was made with.' })
    if (tensor.shape.join() !== shape.join())
      throw new UnslothError('MODEL_INVALID', `${folder}: ${name} has shape [${tensor.shape.join(', ')}], but this recipe needs [${shape.join(', ')}].`, { hint: 'lora.lora_r must be that of the adapter, and the base model the same.' })
    model.writeParameter(name, await readFloat32(tensor))
  }
}

async function adapterTensors(folder: string): Promise<Map<string, TensorLocation>> {
  const adapter = await openPeftAdapter(folder)
  const tensors = new Map(adapter.saved)
  for (const { module, a, b } of adapter.modules.values()) {
    tensors.set(`${module}.lora_A.weight`, a)
    tensors.set(`${module}.lora_B.weight`, b)
  }
  return tensors
}
