import type { LoadedModel } from '../runtime/loadedModel.ts'
import type { Golden, Quantity } from './golden.ts'

/** What a new adapter adds to the weights: `<prefix>.<module>` = factor·B·A for each that the golden holds. */
export function startQuantities(
  golden: Golden,
  model: LoadedModel,
  prefix: 'pissa' | 'loftq',
  set: (name: string, data: Quantity['data'], shape: readonly number[]) => void,
): void {
  for (const { module, rank, inputs, width, scale } of model.patched.modules) {
    const name = `${prefix}.${module}`
    if (!golden.has(name)) continue
    const [a, b] = [model.readParameter(`${module}.lora_A.weight`), model.readParameter(`${module}.lora_B.weight`)]
    // PEFT leaves the scale of the adapter out of LoftQ.
    const factor = prefix === 'pissa' ? scale : 1
    const product = Float32Array.from({ length: width * inputs }, (_, i) => {
      const [row, column] = [Math.floor(i / inputs), i % inputs]
      let sum = 0
      for (let k = 0; k < rank; ++k) sum += b[row * rank + k]! * a[k * inputs + column]!
      return factor * sum
    })
    set(name, product, [width, inputs])
  }
}
