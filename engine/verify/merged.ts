import { toGraphForm } from '../model/storedForm.ts'
import { LoadedModel } from '../runtime/loadedModel.ts'
import { describeModel, patchModel } from '../runtime/patchedModel.ts'
import { Runtime, type DeviceChoice } from '../runtime/runtime.ts'
import { mergedTensor } from '../save/merge.ts'
import { allLogits } from './passes.ts'

/** Logits of a model whose weights are the merged ones, unrounded. */
export async function mergedLogits(model: LoadedModel, rows: readonly Int32Array[], device: DeviceChoice): Promise<Float32Array> {
  const runtime = new Runtime(device)
  try {
    const patched = patchModel(await describeModel(model.patched.model.folder), { kind: 'none' }, model.target, {
      weightType: 'f32',
      quantisation: { kind: 'none' },
    })
    const merged = await LoadedModel.load(patched, runtime, { seed: 0 })
    for (const entry of patched.model.entries) {
      const { storage } = patched.arena.weights.get(entry.id)!.value
      const width = storage.rows === 1 ? 1 : storage.cols
      for (const piece of entry.pieces) {
        const bytes = await mergedTensor(model, entry, piece, 'f32')
        const data = piece.form === undefined ? bytes : toGraphForm(new Uint32Array(bytes.buffer), piece.form, piece.rows, width)
        runtime.write('weights', storage.offset + piece.row * width * 4, data)
      }
    }
    return await allLogits(merged, merged.base, rows)
  } finally {
    runtime.dispose()
  }
}
