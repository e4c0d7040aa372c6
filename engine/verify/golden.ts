import { existsSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { openTensorSource, readFloat32, readInt32, requireTensor, type TensorSource } from '../io/tensorSource.ts'

/** A tensor of a golden case, or one that we computed for it. */
export interface Quantity {
  readonly shape: readonly number[]
  readonly data: Float32Array | Int32Array
}

/** What a case gives (inputs), and facts about the reference that nobody has to reproduce. */
const inputNames = new Set([
  'input_ids',
  'attention_mask',
  'labels',
  'curve_input_ids',
  'dpo_chosen_ids',
  'dpo_rejected_ids',
  'nf4_input',
  'q8_input',
  'adam8_param0',
  'adam8_grads',
])
const isReferenceFact = (name: string): boolean => name.startsWith('bf16_error.')

/** Where the model is: beside its reference, or for QLoRA in the folder of what bitsandbytes has quantised. */
function modelIn(folder: string): string {
  const quantised = join(folder, 'bnb-4bit')
  return existsSync(quantised) ? quantised : folder
}

/** A golden case: inputs, and what a reference implementation computed from them. */
export class Golden {
  readonly folder: string
  private readonly source: TensorSource

  private constructor(folder: string, source: TensorSource) {
    this.folder = folder
    this.source = source
  }

  /** Whether a folder holds results of a reference and the model that they are of. */
  static isCase(folder: string): boolean {
    return existsSync(join(folder, 'golden.safetensors')) && existsSync(join(modelIn(folder), 'config.json'))
  }

  static async open(folder: string): Promise<Golden> {
    return new Golden(folder, await openTensorSource(join(folder, 'golden.safetensors')))
  }

  /** What the case is called: its folder's name. */
  get name(): string {
    return basename(resolve(this.folder))
  }

  /** Whether the reference computed with weights that bitsandbytes has quantised. */
  get quantised(): boolean {
    return this.modelFolder !== this.folder
  }

  get modelFolder(): string {
    return modelIn(this.folder)
  }

  get metadata(): ReadonlyMap<string, string> {
    return this.source.metadata
  }

  has(name: string): boolean {
    return this.source.tensors.has(name)
  }

  /** Names of the quantities that a check has to compute. */
  expected(): string[] {
    return [...this.source.tensors.keys()].filter((name) => !inputNames.has(name) && !isReferenceFact(name)).sort()
  }

  shape(name: string): readonly number[] {
    return requireTensor(this.source, name).shape
  }

  async floats(name: string): Promise<Float32Array> {
    return readFloat32(requireTensor(this.source, name))
  }

  async integers(name: string): Promise<Int32Array> {
    return readInt32(requireTensor(this.source, name))
  }

  /** A matrix of token ids as rows. */
  async tokenRows(name: string): Promise<Int32Array[]> {
    const shape = this.shape(name)
    const width = shape.at(-1)
    const values = await this.integers(name)
    if (width === undefined) throw new UnslothError('FILE_FORMAT', `${this.folder}: ${name} is not a matrix of token ids.`)
    return Array.from({ length: values.length / width }, (_, row) => values.subarray(row * width, (row + 1) * width))
  }
}
