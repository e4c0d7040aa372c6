import assert from 'node:assert/strict'
import { mkdirSync, readFileSync, truncateSync, unlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { writeSafetensors, writeTensors, type NamedTensor } from '../../../engine/io/safetensorsWriter.ts'
import { encodeFloats, halfToNumber, numberToHalf } from '../../../engine/io/tensorConvert.ts'
import { ModelWriter } from '../../../engine/io/tensorSink.ts'
import {
  openTensorSource,
  readFloat32,
  readFloat64,
  readInt32,
  readTensorBytes,
  requireTensor,
} from '../../../engine/io/tensorSource.ts'
import { failure, useFolder } from './support.ts'

const bytesOf = (array: { buffer: ArrayBuffer }): Uint8Array => new Uint8Array(array.buffer)
const tensors: NamedTensor[] = ['a', 'b', 'c'].map((name, index) => ({
  name,
  dtype: 'F32',
  shape: [2],
  data: bytesOf(Float32Array.of(index, -1)),
}))

describe('tensor source', () => {
  const folder = useFolder()
  const index = (): string => join(folder(), 'model.safetensors.index.json')
  const shard = (number: number): string => join(folder(), `model-0000${number}-of-00003.safetensors`)
  const writeShards = async (): Promise<unknown> =>
    writeTensors(await ModelWriter.open(folder(), tensors, { maxShardSize: 8 }), tensors)
  const changeIndex = (
    change: (json: { metadata: { total_size: number }; weight_map: Record<string, unknown> }) => unknown,
  ): void => {
    const json = JSON.parse(readFileSync(index(), 'utf8')) as {
      metadata: { total_size: number }
      weight_map: Record<string, unknown>
    }
    change(json)
    writeFileSync(index(), JSON.stringify(json))
  }

  it('gives one map over all shards, from the folder or the index', async () => {
    await writeShards()
    for (const path of [folder(), index()]) {
      const source = await openTensorSource(path)
      assert.deepEqual([...source.tensors.keys()], ['a', 'b', 'c'])
      assert.deepEqual([source.files.length, source.totalBytes, source.warnings], [3, 24, []])
      const b = requireTensor(source, 'b')
      assert.equal(b.path, shard(2))
      assert.deepEqual([...(await readFloat32(b))], [1, -1])
      assert.throws(() => requireTensor(source, 'z'), failure('MODEL_INVALID', /tensor "z" is missing/))
    }
  })

  it('names missing shards', async () => {
    await writeShards()
    unlinkSync(shard(2))
    unlinkSync(shard(3))
    await assert.rejects(
      openTensorSource(folder()),
      failure(
        'FILE_NOT_FOUND',
        /2 of 3 weight files are missing: "model-00002-of-00003\.safetensors", "model-00003/,
        /fetch the model again/,
      ),
    )
  })

  it('names a tensor that its shard does not have', async () => {
    await writeShards()
    changeIndex((json) => (json.weight_map.d = 'model-00001-of-00003.safetensors'))
    await assert.rejects(
      openTensorSource(folder()),
      failure('FILE_FORMAT', /model-00001-of-00003\.safetensors: tensor "d" is not in this file/),
    )
  })

  it('warns of a wrong total and of tensors outside the index', async () => {
    await writeShards()
    changeIndex((json) => {
      json.metadata.total_size = 99
      delete json.weight_map.b
    })
    await writeSafetensors(shard(1), tensors.slice(0, 2))
    const { warnings, tensors: found } = await openTensorSource(folder())
    assert.deepEqual([...found.keys()], ['a', 'c'])
    assert.match(warnings.join('\n'), /tensor "b" is not in model\.safetensors\.index\.json/)
    assert.match(warnings.join('\n'), /"total_size" is 99 bytes, the tensors have 16/)
  })

  it('does not follow an index out of its folder', async () => {
    for (const file of ['../x.safetensors', '/etc/passwd', 'a/../../b', 'C:\\x', '..\\x', '', '.', 7, null, ['x']]) {
      writeFileSync(index(), JSON.stringify({ weight_map: { w: file } }))
      await assert.rejects(openTensorSource(folder()), failure('FILE_FORMAT', /puts tensor "w" in .*not a file of this folder/))
    }
    for (const text of ['[]', '{}', '{"weight_map": 3}', '{"weight_map":{"a":"x","a":"y"}}']) {
      writeFileSync(index(), text)
      await assert.rejects(openTensorSource(folder()), failure('FILE_FORMAT', /index\.json/))
    }
  })

  it('says what a folder without weights has instead', async () => {
    const expectHint = (hint: RegExp): Promise<void> =>
      assert.rejects(openTensorSource(folder()), failure('FILE_NOT_FOUND', /neither model\.safetensors nor/, hint))
    await expectHint(/Hugging Face Hub/)
    writeFileSync(join(folder(), 'pytorch_model.bin'), '')
    await expectHint(/PyTorch/)
    writeFileSync(join(folder(), 'x.gguf'), '')
    await expectHint(/GGUF/)
    writeFileSync(join(folder(), 'adapter_model.safetensors'), '')
    await expectHint(/LoRA adapter/)
    mkdirSync(join(folder(), 'model.safetensors'))
    await assert.rejects(openTensorSource(folder()), failure('FILE_FORMAT', /not a file/))
    await assert.rejects(openTensorSource(join(folder(), 'nothing')), failure('FILE_NOT_FOUND', /no such file/))
  })

  it('notices a file that was cut after it was opened', async () => {
    const path = join(folder(), 'm.safetensors')
    await writeSafetensors(path, tensors)
    const source = await openTensorSource(path)
    truncateSync(path, source.tensors.get('c')!.offset + 4)
    await assert.rejects(readTensorBytes(source.tensors.get('c')!), failure('FILE_FORMAT', /ends inside tensor "c"/))
  })

  it('converts elements of every plain type', async () => {
    const path = join(folder(), 'm.safetensors')
    const values = [0, -1, 0.5, 65504, 2 ** -24]
    const data: [NamedTensor['dtype'], Uint8Array, number[]][] = [
      ['F64', encodeFloats('F64', [...values, 1e300]), [...values, 1e300]],
      ['F32', encodeFloats('F32', values), values],
      ['F16', encodeFloats('F16', values), values],
      ['BF16', encodeFloats('BF16', [1, -2.5, 3e38, 1 / 3]), [1, -2.5, 226 * 2 ** 120, 0.333984375]],
      ['F8_E4M3', Uint8Array.of(0, 0x38, 0xb8, 0x7e, 0x01, 0x7f), [0, 1, -1, 448, 2 ** -9, NaN]],
      ['F8_E5M2', Uint8Array.of(0, 0x3c, 0xbc, 0x7b, 0x7c, 0x01), [0, 1, -1, 57344, Infinity, 2 ** -16]],
      ['F8_E8M0', Uint8Array.of(0, 127, 130, 255), [2 ** -127, 1, 8, NaN]],
      ['I64', bytesOf(BigInt64Array.of(-5n, 2n ** 31n)), [-5, 2 ** 31]],
      ['U64', bytesOf(BigUint64Array.of(5n)), [5]],
      ['I32', bytesOf(Int32Array.of(-7)), [-7]],
      ['U32', bytesOf(Uint32Array.of(4294967295)), [4294967295]],
      ['I16', bytesOf(Int16Array.of(-300)), [-300]],
      ['U16', bytesOf(Uint16Array.of(65535)), [65535]],
      ['I8', Uint8Array.of(255), [-1]],
      ['U8', Uint8Array.of(255), [255]],
      ['BOOL', Uint8Array.of(0, 1), [0, 1]],
    ]
    await writeSafetensors(
      path,
      data.map(([dtype, bytes, expected]) => ({ name: dtype, dtype, shape: [expected.length], data: bytes })),
    )
    const source = await openTensorSource(path)
    for (const [dtype, , expected] of data) {
      assert.deepEqual([...(await readFloat64(source.tensors.get(dtype)!))], expected, dtype)
      assert.deepEqual(await readFloat32(source.tensors.get(dtype)!), Float32Array.from(expected), dtype)
    }
    assert.deepEqual(await readInt32(source.tensors.get('I32')!), Int32Array.of(-7))
    await assert.rejects(
      readInt32(source.tensors.get('I64')!),
      failure('FILE_FORMAT', /"I64": element 1 \(2147483648\) is not a 32-bit integer/),
    )
    await assert.rejects(readInt32(source.tensors.get('F64')!), failure('FILE_FORMAT', /element 2 \(0\.5\)/))
    await writeSafetensors(path, [{ name: 'p', dtype: 'F4', shape: [2], data: Uint8Array.of(1) }])
    await assert.rejects(
      readFloat32((await openTensorSource(path)).tensors.get('p')!),
      failure('MODEL_UNSUPPORTED', /"p": elements of type F4/),
    )
  })

  it('rounds to half precision and bfloat16 to nearest even', () => {
    for (let bits = 0; bits < 0x10000; bits++) {
      const value = halfToNumber(bits)
      if (Number.isNaN(value)) assert.equal(numberToHalf(value), 0x7e00)
      else assert.equal(numberToHalf(value), bits)
      // Half way to the next pattern of the same sign goes to the even one, a little less or more to the nearer.
      if ((bits & 0x7fff) >= 0x7bff) continue
      const middle = (value + halfToNumber(bits + 1)) / 2
      assert.equal(numberToHalf(middle), bits + (bits & 1))
      assert.equal(numberToHalf(middle * (1 - 2 ** -40)), bits)
      assert.equal(numberToHalf(middle * (1 + 2 ** -40)), bits + 1)
    }
    assert.deepEqual([65519, 65520, -1e9].map(numberToHalf), [0x7bff, 0x7c00, 0xfc00])
    const brain = (values: number[]): number[] => [...new Uint16Array(encodeFloats('BF16', values).buffer)]
    assert.deepEqual(
      brain([1, 1 + 2 ** -8, 1 + 3 * 2 ** -8, 1 + 2 ** -8 + 2 ** -20, Infinity, -Infinity, 3.4e38, -0]),
      [0x3f80, 0x3f80, 0x3f82, 0x3f81, 0x7f80, 0xff80, 0x7f80, 0x8000],
    )
    assert.equal(brain([NaN])[0]! & 0x7fc0, 0x7fc0)
  })
})
