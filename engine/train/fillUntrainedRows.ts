import type { LoadedModel } from '../runtime/loadedModel.ts'

/** Trained matrices that have a row for each token. */
const tokenMatrix = /(?:^|\.)(?:embed_tokens|wte|lm_head)(?:\.\w+)*\.weight$/

/**
 * Rows that were never trained, of so many columns each, become the mean of all others, scaled by how often the data use the token:
 * a row of zeros has no direction to learn from, and logits that are all equal give NaN (unsloth's fix_untrained_tokens).
 */
export function fillRows(values: Float32Array, cols: number, untrained: ReadonlyMap<number, number>): void {
  const rows = values.length / cols
  const mean = new Float64Array(cols)
  for (let row = 0; row < rows; row++) {
    if (untrained.has(row)) continue
    for (let col = 0; col < cols; col++) mean[col]! += values[row * cols + col]!
  }
  const most = Math.max(...untrained.values())
  for (const [row, count] of untrained) {
    if (row >= rows) continue
    const scale = count / most / Math.max(1, rows - untrained.size)
    values.set(
      mean.map((sum) => sum * scale),
      row * cols,
    )
  }
}

/** Fills such rows of every trained embedding and output matrix. Nothing to do leaves the model as it is. */
export function fillUntrainedRows(model: LoadedModel, untrained: ReadonlyMap<number, number>): void {
  if (untrained.size === 0) return
  for (const { name, cols } of model.patched.layout.parameters.filter((parameter) => tokenMatrix.test(parameter.name))) {
    const values = model.readParameter(name)
    fillRows(values, cols, untrained)
    model.writeParameter(name, values)
  }
}
