import { UnslothError } from '#shared/errors.ts'
import { bytesPerElement, dtypeCode, isQuantised } from '../graph/dtype.ts'
import { rowRange, whole, type Command, type Tensor } from '../graph/graph.ts'
import { gemm } from '../graph/ops/linear.ts'
import { align, planMemory } from '../graph/plan.ts'
import type { LoraModule } from '../patch/lora.ts'
import { symmetricEigen } from '../patch/symmetricEigen.ts'
import type { PatchedModel } from './patchedModel.ts'
import type { Runtime } from './runtime.ts'
import { loadPlain } from './weightArena.ts'

/** Directions that are followed beside those that are kept, and rounds of subspace iteration (Halko et al., arXiv 0909.4061). */
const oversampling = 16
const rounds = 12

/** Adapter matrices that a weight starts with. */
export interface Principal {
  /** [rank, in] */
  readonly a: Float32Array
  /** [width, rank] */
  readonly b: Float32Array
}

/**
 * Starts of adapters from singular vectors, computed on the model's device. `pissa` (arXiv 2404.02948): the principal part of W moves
 * into B·A, W keeps the rest. `loftq` (arXiv 2310.08659, one round): B·A is the principal part of what quantisation took from W.
 */
export class PrincipalInit {
  private readonly patched: PatchedModel
  private readonly runtime: Runtime
  private readonly seed: number
  private offset = 0

  constructor(patched: PatchedModel, runtime: Runtime, seed: number) {
    this.patched = patched
    this.runtime = runtime
    this.seed = seed
  }

  async pissa(module: LoraModule, index: number): Promise<Principal> {
    const { weight, rows, cols } = this.weightOf(module)
    if (isQuantised(weight.storage.dtype))
      throw new UnslothError('RECIPE', 'lora.init_lora_weights: pissa changes the weights, which quantised ones do not allow.', {
        hint: 'Name a 16-bit model and set training.load_in_4bit and training.load_in_8bit to false, or choose loftq.',
      })
    this.offset = 0
    const w = this.matrix('w', rows, cols)
    await this.run([{ name: 'cast', tensors: [w, this.part(weight, module)], ints: [], floats: [] }])
    const { a, b } = await this.principal(w, module.rank, index, 1 / module.scale)
    const [left, right] = [this.matrix('b', rows, module.rank), this.matrix('a', module.rank, cols)]
    this.write(left, b)
    this.write(right, a)
    await this.run([
      gemm(1, w, left, right, { alpha: -module.scale, accumulate: true, precision: 0 }),
      { name: 'cast', tensors: [this.part(weight, module), w], ints: [], floats: [] },
    ])
    return { a, b }
  }

  async loftq(module: LoraModule, index: number): Promise<Principal> {
    const { weight, rows, cols } = this.weightOf(module)
    const piece = this.patched.model.entries
      .find(({ id }) => id === module.weightId)!
      .pieces.find(({ row }) => row === module.column)!
    const name = piece.from ?? piece.name
    if (!isQuantised(weight.storage.dtype) || this.patched.model.quantised.has(name))
      throw new UnslothError(
        'RECIPE',
        `lora.init_lora_weights: loftq starts from what quantisation takes from a 16-bit model, but ${name} is not quantised while it is read.`,
        { hint: 'Name a 16-bit model and set training.load_in_4bit: true.' },
      )
    this.offset = 0
    const [w, quantised] = [this.matrix('w', rows, cols), this.matrix('q', rows, cols)]
    await loadPlain(this.runtime, 'cache', this.patched.model, name, w.storage.offset)
    await this.run([
      { name: 'dequantise', tensors: [quantised, weight], ints: [module.column], floats: [] },
      { name: 'add', tensors: [w, w, quantised], ints: [], floats: [1, -1] },
    ])
    // PEFT leaves the scale of the adapter out here.
    return this.principal(w, module.rank, index, 1)
  }

  /** Gives the memory back. */
  release(): void {
    this.runtime.release('cache')
  }

  private weightOf({ weightId, width, inputs, experts }: LoraModule): { weight: Tensor; rows: number; cols: number } {
    const weight = this.patched.arena.weights.get(weightId)
    if (weight === undefined || experts !== undefined)
      throw new UnslothError('RECIPE', 'lora.init_lora_weights: pissa and loftq are for linear layers, not for experts.', {
        hint: 'Leave the experts out of lora.target_modules, or use init_lora_weights: true.',
      })
    return { weight: weight.value, rows: width, cols: inputs }
  }

  private part(weight: Tensor, { column, width }: LoraModule): Tensor {
    return rowRange(weight, column, width, bytesPerElement(weight.storage.dtype))
  }

  private matrix(name: string, rows: number, cols: number): Tensor {
    const offset = this.offset
    this.offset = align(offset + rows * cols * 4)
    if (this.runtime.bytesOf('cache') < this.offset) this.grow()
    return whole({ name, arena: 'cache', offset, dtype: 'f32', rows, cols, rule: 'fixed', keep: 'residual', layer: -1 })
  }

  /** Room for the largest weight at once: growing loses what stands there. */
  private grow(): void {
    const most = Math.max(
      ...this.patched.modules.map(({ width, inputs, rank }) => {
        const l = Math.min(width, inputs, rank + oversampling)
        return 2 * align(width * inputs * 4) + 4 * align((width + inputs) * l * 4) + 4 * align(l * l * 4)
      }),
    )
    this.runtime.reserve('cache', Math.max(most, this.offset))
  }

  private write({ storage }: Tensor, values: Float32Array): void {
    this.runtime.write('cache', storage.offset, values)
  }

  private read({ storage }: Tensor): Float32Array<ArrayBuffer> {
    return this.runtime.readFloats('cache', storage.offset, storage.rows * storage.cols)
  }

  private async run(commands: readonly Command[]): Promise<void> {
    await this.runtime.compile(planMemory(commands)).run()
  }

  /** The `rank` largest singular triplets of w as b = U·√(σ·factor), a = √(σ·factor)·Vᵀ. */
  private async principal(w: Tensor, rank: number, index: number, factor: number): Promise<Principal> {
    const { rows, cols } = w.storage
    const l = Math.min(rows, cols, rank + oversampling)
    const [tall, tallNext, wide, wideNext] = [
      this.matrix('y', rows, l),
      this.matrix('y2', rows, l),
      this.matrix('z', cols, l),
      this.matrix('z2', cols, l),
    ]
    const [gram, mix] = [this.matrix('gram', l, l), this.matrix('mix', l, l)]
    await this.runtime.fillUniform('cache', wide.storage.offset, cols * l, dtypeCode('f32'), [-1, 1], this.seed, index)
    /** `from` with orthonormal columns, into `to`: from·V·Λ^(−1/2) with fromᵀ·from = V·Λ·Vᵀ. */
    const orthonormal = async (from: Tensor, to: Tensor): Promise<void> => {
      await this.run([gemm(2, gram, from, from, { precision: 0 })])
      const { values, vectors } = symmetricEigen(this.read(gram), l)
      this.write(
        mix,
        Float32Array.from(vectors, (value, i) => (values[i % l]! > 1e-12 * values[0]! ? value / Math.sqrt(values[i % l]!) : 0)),
      )
      await this.run([gemm(1, to, from, mix, { precision: 0 })])
    }
    const twice = async (basis: Tensor, other: Tensor): Promise<void> => {
      await orthonormal(basis, other)
      await orthonormal(other, basis)
    }
    await twice(wide, wideNext)
    for (let round = 0; round < (l === Math.min(rows, cols) ? 1 : rounds); ++round) {
      if (round > 0) {
        await this.run([gemm(2, wide, w, tall, { precision: 0 })])
        await twice(wide, wideNext)
      }
      await this.run([gemm(1, tall, w, wide, { precision: 0 })])
      await twice(tall, tallNext)
    }
    // w ≈ tall·wideᵀ with wide = wᵀ·tall, whose Gram matrix has the squares of the singular values.
    await this.run([gemm(2, wide, w, tall, { precision: 0 }), gemm(2, gram, wide, wide, { precision: 0 })])
    const { values, vectors } = symmetricEigen(this.read(gram), l)
    const sigma = values.map((value) => Math.sqrt(Math.max(0, value)))
    const [left, right] = [new Float32Array(l * rank), new Float32Array(rank * l)]
    for (let j = 0; j < Math.min(rank, l); ++j)
      for (let i = 0; i < l; ++i) {
        const vector = vectors[i * l + j]!
        left[i * rank + j] = vector * Math.sqrt(sigma[j]! * factor)
        right[j * l + i] = sigma[j]! > 0 ? (vector * Math.sqrt(sigma[j]! * factor)) / sigma[j]! : 0
      }
    const reuse = (of: Tensor, name: string, height: number, width: number): Tensor =>
      whole({ ...of.storage, name, rows: height, cols: width })
    const [leftMatrix, rightMatrix] = [reuse(mix, 'left', l, rank), reuse(gram, 'right', rank, l)]
    this.write(leftMatrix, left)
    this.write(rightMatrix, right)
    const [b, a] = [reuse(tallNext, 'b', rows, rank), reuse(wideNext, 'a', rank, cols)]
    await this.run([gemm(1, b, tall, leftMatrix, { precision: 0 }), gemm(0, a, rightMatrix, wide, { precision: 0 })])
    return { a: this.read(a), b: this.read(b) }
  }
}
