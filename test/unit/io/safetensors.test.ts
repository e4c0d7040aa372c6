import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  parseSafetensorsHeader,
  readSafetensorsHeader,
  safetensorsHeaderLength,
  tensorBytes,
  type SafetensorsHeader,
} from '../../../engine/io/safetensors.ts'
import { failure, fileOf, fixture, useFolder } from './support.ts'

const parse = (file: Uint8Array): SafetensorsHeader => {
  const length = safetensorsHeaderLength(file.subarray(0, 8), file.length, 'm.safetensors')
  return parseSafetensorsHeader(file.subarray(8, 8 + length), file.length, 'm.safetensors')
}
const parseText = (header: string, dataBytes = 0): SafetensorsHeader => parse(fileOf(header, dataBytes))
const tensor = (dtype: string, shape: string, offsets: string): string =>
  `{"dtype":"${dtype}","shape":${shape},"data_offsets":${offsets}}`

describe('safetensors header', () => {
  const folder = useFolder()

  it('reads a file of the reference library', async () => {
    const { tensors, metadata, dataBegin, fileBytes } = await readSafetensorsHeader(fixture('adapter/adapter_model.safetensors'))
    assert.deepEqual([...metadata], [['format', 'pt']])
    assert.equal(tensors.length, 28)
    assert.deepEqual(tensors[0], {
      name: 'base_model.model.model.layers.0.mlp.down_proj.lora_A.weight',
      dtype: 'F32',
      shape: [4, 128],
      begin: dataBegin,
      end: dataBegin + 2048,
    })
    assert.equal(tensors.at(-1)!.end, fileBytes)
  })

  it('knows every type with its size', () => {
    const sizes: Record<string, number> = {
      F64: 8,
      F32: 4,
      F16: 2,
      BF16: 2,
      I64: 8,
      I32: 4,
      I16: 2,
      I8: 1,
      U8: 1,
      BOOL: 1,
      F8_E4M3: 1,
      F8_E5M2: 1,
      F8_E8M0: 1,
      U16: 2,
      U32: 4,
      U64: 8,
      C64: 8,
      F4: 0.5,
      F6_E2M3: 0.75,
      F6_E3M2: 0.75,
    }
    for (const [dtype, size] of Object.entries(sizes)) {
      const { tensors } = parseText(`{"t":${tensor(dtype, '[2,4]', `[0,${8 * size}]`)}}`, 8 * size)
      assert.equal(tensors[0]!.dtype, dtype)
    }
    assert.throws(
      () => parseText(`{"t":${tensor('F4', '[3]', '[0,2]')}}`, 2),
      failure('FILE_FORMAT', /"t".*no whole number of bytes/),
    )
  })

  it('accepts any order, empty tensors, scalars and unknown members', () => {
    const { tensors } = parseText(
      `{"b":${tensor('U8', '[2]', '[4,6]')},"a":${tensor('F32', '[]', '[0,4]')},"e":{"dtype":"F32","shape":[0,9],"data_offsets":[4,4],"x":1}}   `,
      6,
    )
    assert.deepEqual(
      tensors.map(({ name }) => name),
      ['a', 'e', 'b'],
    )
    assert.deepEqual(parseText('{}').tensors, [])
  })

  it('keeps names that are special to JavaScript as ordinary names', () => {
    const { tensors, metadata } = parseText(
      `{"__metadata__":{"__proto__":"x"},"__proto__":${tensor('U8', '[1]', '[0,1]')},"constructor":${tensor('U8', '[1]', '[1,2]')}}`,
      2,
    )
    assert.deepEqual(
      tensors.map(({ name }) => name),
      ['__proto__', 'constructor'],
    )
    assert.equal(metadata.get('__proto__'), 'x')
    assert.equal(({} as Record<string, unknown>).dtype, undefined)
  })

  const rejected: [what: string, header: string, dataBytes: number, message: RegExp][] = [
    ['a shape of 1e308', `{"w":${tensor('F32', '[1e308]', '[0,4]')}}`, 4, /"w".*shape/],
    ['a negative size', `{"w":${tensor('F32', '[-1]', '[0,4]')}}`, 4, /"w".*shape/],
    ['negative zero', `{"w":${tensor('F32', '[-0]', '[0,0]')}}`, 0, /"w".*shape/],
    ['a fraction', `{"w":${tensor('F32', '[1.5]', '[0,4]')}}`, 4, /"w".*shape/],
    ['a text as size', `{"w":${tensor('F32', '["1"]', '[0,4]')}}`, 4, /"w".*shape/],
    ['a size above 2^53', `{"w":${tensor('F32', '[9007199254740993]', '[0,4]')}}`, 4, /"w".*shape/],
    ['a product above 2^53', `{"w":${tensor('F32', '[4294967296,4294967296]', '[0,4]')}}`, 4, /"w".*no whole number of bytes/],
    ['a shape that is no list', `{"w":${tensor('F32', '4', '[0,4]')}}`, 4, /"w".*shape/],
    ['an unknown type', `{"w":${tensor('F128', '[1]', '[0,16]')}}`, 16, /"w".*unknown dtype "\\?"?F128/],
    ['a type from the prototype', `{"w":${tensor('toString', '[1]', '[0,16]')}}`, 16, /"w".*unknown dtype/],
    ['no type', '{"w":{"shape":[1],"data_offsets":[0,1]}}', 1, /"w" has no "dtype"/],
    ['offsets backwards', `{"w":${tensor('U8', '[1]', '[2,1]')}}`, 2, /"w".*ends \(1\) before it begins \(2\)/],
    ['one offset', `{"w":${tensor('U8', '[1]', '[1]')}}`, 1, /"w".*data_offsets/],
    ['a size that does not match', `{"w":${tensor('F32', '[2]', '[0,4]')}}`, 4, /"w".*needs 8 bytes.*span 4/],
    ['an overlap', `{"a":${tensor('U8', '[4]', '[0,4]')},"b":${tensor('U8', '[4]', '[2,6]')}}`, 6, /"b" overlaps "a"/],
    ['twice the same place', `{"a":${tensor('U8', '[4]', '[0,4]')},"b":${tensor('U8', '[4]', '[0,4]')}}`, 4, /"b" overlaps "a"/],
    ['a gap', `{"a":${tensor('U8', '[1]', '[0,1]')},"b":${tensor('U8', '[1]', '[3,4]')}}`, 4, /2 bytes before tensor "b"/],
    ['bytes behind the last tensor', `{"a":${tensor('U8', '[1]', '[0,1]')}}`, 5, /4 bytes after the last tensor/],
    ['a cut file', `{"a":${tensor('U8', '[1]', '[0,1]')},"b":${tensor('U8', '[9]', '[1,10]')}}`, 5, /cut short: tensor "b"/],
    ['a repeated name', `{"a":${tensor('U8', '[1]', '[0,1]')},"a":${tensor('U8', '[1]', '[0,1]')}}`, 1, /"a" appears twice/],
    ['metadata that is no text', '{"__metadata__":{"n":1}}', 0, /"__metadata__".*"n"/],
    ['an entry that is no object', '{"w":[1]}', 0, /"w".*not an object/],
    ['a header that is a list', '[1]', 0, /begins with "\["/],
    ['a syntax error', '{"w":}', 0, /line 1, column 6/],
    ['deep nesting', `{"w":${'['.repeat(200_000)}`, 0, /nested more than 100 levels/],
    ['a name that is not Unicode', `{"\\ud800":${tensor('U8', '[1]', '[0,1]')}}`, 1, /not valid Unicode/],
  ]
  for (const [what, header, dataBytes, message] of rejected)
    it(`refuses ${what}`, () => {
      assert.throws(() => parseText(header, dataBytes), failure('FILE_FORMAT', message))
    })

  it('bounds the header length by the file and by the format', () => {
    const file = fileOf('{}')
    const cases: [bigint, RegExp][] = [
      [3n, /cut short: the header needs 11 bytes, the file has 10/],
      [2n ** 64n - 1n, /over the format's limit/],
      [100_000_001n, /over the format's limit/],
      [0n, /too small/],
    ]
    for (const [length, message] of cases) {
      Buffer.from(file.buffer).writeBigUInt64LE(length, file.byteOffset)
      assert.throws(() => parse(file), failure('FILE_FORMAT', message))
    }
    assert.throws(() => parse(file.subarray(0, 5)), failure('FILE_FORMAT', /only 5 bytes/, /fetch it again/))
  })

  it('says what a wrong file is instead', () => {
    const guess =
      (text: string): (() => void) =>
      () =>
        parse(Buffer.from(text.padEnd(64)))
    assert.throws(
      guess('version https://git-lfs.github.com/spec/v1'),
      failure('FILE_FORMAT', /not a safetensors file/, /git lfs pull/),
    )
    assert.throws(guess('GGUF\x03\0\0\0\x01'), failure('FILE_FORMAT', /not a safetensors/, /GGUF/))
    assert.throws(guess('PK\x03\x04archive/'), failure('FILE_FORMAT', /not a safetensors/, /PyTorch/))
    assert.throws(guess('<!DOCTYPE html>'), failure('FILE_FORMAT', /not a safetensors/, /web page/))
  })

  it('names missing files, folders, pipes and truncated downloads', async () => {
    await assert.rejects(
      readSafetensorsHeader(join(folder(), 'none.safetensors')),
      failure('FILE_NOT_FOUND', /none\.safetensors: no such file/),
    )
    await assert.rejects(readSafetensorsHeader(folder()), failure('FILE_FORMAT', /not a file/))
    if (process.platform !== 'win32') {
      execFileSync('mkfifo', [join(folder(), 'pipe')])
      await assert.rejects(readSafetensorsHeader(join(folder(), 'pipe')), failure('FILE_FORMAT', /not a file/))
    }
    const path = join(folder(), 'cut.safetensors')
    writeFileSync(path, readFileSync(fixture('adapter/adapter_model.safetensors')))
    truncateSync(path, 40_000)
    await assert.rejects(
      readSafetensorsHeader(path),
      failure('FILE_FORMAT', /cut\.safetensors: cut short: tensor "base_model\..*42,408 bytes and has 40,000/, /fetch it again/),
    )
  })

  it('keeps terminal codes of hostile names out of messages', () => {
    assert.throws(
      () => parseText('{"\\u001b[2J\\u202ex":1}'),
      failure('FILE_FORMAT', /^m\.safetensors: tensor "\\u001b\[2J\\u202ex"/),
    )
  })

  it('counts bytes without overflow', () => {
    assert.equal(tensorBytes('F32', []), 4)
    assert.equal(tensorBytes('F32', [2 ** 40, 2 ** 40, 0]), 0)
    assert.equal(tensorBytes('F32', [2 ** 51]), NaN)
  })
})
