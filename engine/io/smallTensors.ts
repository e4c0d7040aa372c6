import { closeSync, openSync, readSync } from 'node:fs'
import { UnslothError } from '#shared/errors.ts'
import { readError } from './fileSystem.ts'
import { quote } from './printable.ts'
import { decodeElements } from './tensorConvert.ts'
import type { TensorLocation } from './tensorSource.ts'

/**
 * Reads many tensors of a few bytes, such as the scales of a quantised model, of which one with experts has a hundred thousand: each file
 * is opened once, and nothing is waited for.
 */
export class SmallTensors {
  private readonly files = new Map<string, number>()

  bytes({ path, name, offset, bytes }: TensorLocation): Uint8Array<ArrayBuffer> {
    const buffer = new Uint8Array(bytes)
    try {
      const file = this.files.get(path) ?? openSync(path, 'r')
      this.files.set(path, file)
      for (let done = 0; done < bytes;) {
        const count = readSync(file, buffer, done, bytes - done, offset + done)
        if (count === 0)
          throw new UnslothError('FILE_FORMAT', `${path}: the file ends inside tensor ${quote(name)}.`, {
            hint: 'The checkpoint is damaged: download it again.',
          })
        done += count
      }
    } catch (error) {
      throw readError(error, path, 'weight file')
    }
    return buffer
  }

  /** Elements as float32 (F64 and integers are rounded). */
  floats(tensor: TensorLocation): Float32Array {
    const values = decodeElements(tensor.dtype, this.bytes(tensor), `${tensor.path}: tensor ${quote(tensor.name)}`)
    return values instanceof Float32Array ? values : Float32Array.from(values as ArrayLike<number>, Number)
  }

  close(): void {
    for (const file of this.files.values()) closeSync(file)
    this.files.clear()
  }
}
