import assert from 'node:assert/strict'
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { nodeFileSystem } from '../../../engine/io/fileSystem.ts'
import { parseSafetensorsHeader, readSafetensorsHeader, safetensorsDtypes, tensorBytes } from '../../../engine/io/safetensors.ts'
import {
  layoutSafetensors,
  SafetensorsWriter,
  writeSafetensors,
  writeTensors,
  type NamedTensor,
} from '../../../engine/io/safetensorsWriter.ts'
import { ModelWriter, parseSize, planShards } from '../../../engine/io/tensorSink.ts'
import { openTensorSource, readTensorBytes, streamTensor } from '../../../engine/io/tensorSource.ts'
import { failingFileSystem, failure, fixture, random, useFolder } from './support.ts'

const bytes = (length: number, value = 7): Uint8Array => new Uint8Array(length).fill(value)
const u8 = (name: string, length: number): NamedTensor => ({
  name,
  dtype: 'U8',
  shape: [length],
  data: bytes(length, length & 255),
})

describe('safetensors writer', () => {
  const folder = useFolder()

  it('writes a file of the reference library again, byte for byte', async () => {
    const path = fixture('adapter/adapter_model.safetensors')
    const source = await openTensorSource(path)
    const tensors = [...source.tensors.values()]
      .reverse()
      .map((tensor) => ({ ...tensor, data: () => streamTensor(tensor, 1000) }))
    await writeSafetensors(join(folder(), 'copy.safetensors'), tensors)
    assert.ok(readFileSync(join(folder(), 'copy.safetensors')).equals(readFileSync(path)))
    assert.deepEqual(readdirSync(folder()), ['copy.safetensors'])
  })

  for (const name of ['nf4-header.bin', 'golden-header.bin'])
    it(`lays out mixed types as the reference library does (${name})`, () => {
      const file = readFileSync(fixture(name))
      const text = JSON.parse(file.subarray(8).toString()) as Record<string, { data_offsets?: [number, number] }>
      const dataBytes = Math.max(...Object.values(text).map(({ data_offsets: offsets }) => offsets?.[1] ?? 0))
      const { tensors, metadata } = parseSafetensorsHeader(file.subarray(8), file.length + dataBytes, name)
      const layout = layoutSafetensors(
        [...tensors].sort((a, b) => (a.name < b.name ? 1 : -1)),
        Object.fromEntries(metadata),
      )
      assert.ok(file.equals(layout.head))
    })

  it('reads back what it wrote, whatever the names, types and chunks', async () => {
    const next = random(5)
    const odd = [
      '',
      ' ',
      '__proto__',
      'constructor',
      'a"b\\c',
      '\u0000\n\u001b',
      'ünï',
      '\ud83d\ude00',
      '\uffff',
      'x'.repeat(5000),
      '0',
      '../up',
      'toString',
    ]
    for (let round = 0; round < 25; round++) {
      const tensors = odd
        .filter(() => next() < 0.7)
        .map((name) => {
          const dtype = safetensorsDtypes[Math.floor(next() * safetensorsDtypes.length)]!
          const shape = Array.from({ length: Math.floor(next() * 4) }, () => Math.floor(next() * 5)).concat(8)
          const data = Uint8Array.from({ length: tensorBytes(dtype, shape) }, () => next() * 256)
          return { name, dtype, shape, data }
        })
      const path = join(folder(), 'r.safetensors')
      const chunked = tensors.map((tensor) => ({ ...tensor, data: () => [tensor.data.subarray(0, 3), tensor.data.subarray(3)] }))
      await writeSafetensors(path, chunked, { metadata: { format: 'pt', note: '"\n' } })
      const source = await openTensorSource(path)
      assert.deepEqual([...source.tensors.keys()].sort(), tensors.map(({ name }) => name).sort())
      assert.equal(source.metadata.get('note'), '"\n')
      for (const { name, dtype, shape, data } of tensors) {
        const found = source.tensors.get(name)!
        assert.deepEqual({ dtype: found.dtype, shape: found.shape }, { dtype, shape })
        assert.deepEqual(await readTensorBytes(found), data)
      }
      assert.equal((await readSafetensorsHeader(path)).dataBegin % 8, 0)
    }
  })

  it('sorts names by code point', () => {
    const layout = layoutSafetensors([u8('\ud83d\ude00', 1), u8('\uffff', 1), u8('a', 1)])
    assert.deepEqual(
      layout.order.map(({ name }) => name),
      ['a', '\uffff', '\ud83d\ude00'],
    )
  })

  it('takes tensors in any order and keeps the old file until it is complete', async () => {
    const path = join(folder(), 'm.safetensors')
    writeFileSync(path, 'old')
    const writer = await SafetensorsWriter.open(path, [u8('a', 3), u8('b', 5)])
    await writer.write('b', bytes(5))
    await writer.write('a', bytes(3))
    assert.equal(readFileSync(path, 'utf8'), 'old')
    assert.equal(readdirSync(folder()).filter((name) => name.startsWith(`m.safetensors.partial-${process.pid}-`)).length, 1)
    assert.deepEqual(await writer.finish(), { files: [path], totalBytes: 8 })
    await writer.abort()
    assert.deepEqual([...(await openTensorSource(path)).tensors.keys()], ['a', 'b'])
  })

  it('refuses missing, repeated, undeclared and wrongly sized tensors, and leaves nothing', async () => {
    const path = join(folder(), 'm.safetensors')
    const attempt = async (work: (writer: SafetensorsWriter) => Promise<unknown>): Promise<void> => {
      await work(await SafetensorsWriter.open(path, [u8('a', 3), u8('b', 5)]))
    }
    await assert.rejects(
      attempt((writer) => writer.finish()),
      failure('INTERNAL', /"a" was never written/),
    )
    await assert.rejects(
      attempt(async (writer) => (await writer.write('a', bytes(3)), writer.write('a', bytes(3)))),
      failure('INTERNAL', /"a" was written twice/),
    )
    await assert.rejects(
      attempt((writer) => writer.write('c', bytes(3))),
      failure('INTERNAL', /"c" was not declared/),
    )
    await assert.rejects(
      attempt((writer) => writer.write('a', bytes(4))),
      failure('INTERNAL', /"a" needs 3 bytes and was given more/),
    )
    await assert.rejects(
      attempt((writer) => writer.write('a', [bytes(1), bytes(1)])),
      failure('INTERNAL', /"a" needs 3 bytes and was given only 2/),
    )
    assert.deepEqual(readdirSync(folder()), [])
  })

  it('passes on the error of whoever provides the data', async () => {
    const lost = new UnslothError('FILE_FORMAT', 'the source is broken')
    const tensors: NamedTensor[] = [u8('a', 3), { ...u8('b', 3), data: () => Promise.reject(lost) }]
    await assert.rejects(writeSafetensors(join(folder(), 'm.safetensors'), tensors), lost)
    assert.deepEqual(readdirSync(folder()), [])
  })

  const failures: [code: string, message: RegExp, hint: RegExp][] = [
    ['ENOSPC', /disk is full/, /Free some space/],
    ['EIO', /input\/output error/, /Check the disk/],
    ['EACCES', /no permission/, /permissions/],
    ['EDQUOT', /quota/, /Delete files/],
  ]
  for (const [code, message, hint] of failures)
    it(`turns ${code} at any moment into advice, removes the partial file and keeps the old one`, async () => {
      const path = join(folder(), 'm.safetensors')
      writeFileSync(path, 'old')
      const tensors = [u8('a', 3000), u8('b', 5)]
      const whole = failingFileSystem(Infinity, code)
      await writeSafetensors(join(folder(), 'count'), tensors, { fs: whole })
      for (let failAt = 0; failAt < whole.operations(); failAt++) {
        await assert.rejects(
          writeSafetensors(path, tensors, { fs: failingFileSystem(failAt, code) }),
          failure('FILE_WRITE', message, hint),
        )
        assert.equal(readFileSync(path, 'utf8'), 'old')
        assert.deepEqual(readdirSync(folder()).sort(), ['count', 'm.safetensors'])
      }
    })

  it('sees before writing that the disk is too small', async () => {
    const fs = { ...nodeFileSystem, freeBytes: () => Promise.resolve(1_000_000) }
    const huge = { name: 'w', dtype: 'BF16', shape: [8_000_000_000] } as const
    await assert.rejects(
      ModelWriter.open(folder(), [huge], { fs }),
      failure('FILE_WRITE', /disk is full/, /14\.9 GB are needed.*977 KB are free/),
    )
    await assert.rejects(SafetensorsWriter.open(join(folder(), 'm'), [huge], { fs }), failure('FILE_WRITE', /disk is full/))
    assert.deepEqual(readdirSync(folder()), [])
  })

  it('names a folder that does not exist', async () => {
    await assert.rejects(
      writeSafetensors(join(folder(), 'no', 'm.safetensors'), [u8('a', 1)]),
      failure('FILE_WRITE', /folder does not exist/),
    )
  })
})

describe('model writer', () => {
  const folder = useFolder()
  const sizes = [6, 6, 2, 6, 2, 2]
  const tensors = sizes.map((size, index) => u8(`t${index}`, size))

  it('splits as huggingface_hub does', () => {
    const names = (limit: number, list = tensors): string[][] =>
      planShards(list, limit).map((shard) => shard.map(({ name }) => name))
    assert.deepEqual(names(10), [['t0'], ['t1', 't2'], ['t3', 't4', 't5']])
    assert.deepEqual(names(24), [['t0', 't1', 't2', 't3', 't4', 't5']])
    assert.deepEqual(names(4), [['t0'], ['t1'], ['t3'], ['t2', 't4'], ['t5']])
    assert.deepEqual(names(4, []), [[]])
  })

  it('writes one file without index when it fits', async () => {
    const result = await writeTensors(await ModelWriter.open(folder(), tensors), tensors)
    assert.deepEqual(result, { files: [join(folder(), 'model.safetensors')], totalBytes: 24 })
    assert.deepEqual(readdirSync(folder()), ['model.safetensors'])
    assert.equal((await openTensorSource(folder())).metadata.get('format'), 'pt')
  })

  it('writes shards with an index in the form of the Python libraries, and removes weights of an earlier save', async () => {
    for (const name of ['model.safetensors', 'model-00001-of-00002.safetensors', 'config.json', 'model_notes.safetensors'])
      writeFileSync(join(folder(), name), 'old')
    await writeTensors(await ModelWriter.open(folder(), tensors, { maxShardSize: 10 }), tensors)
    assert.deepEqual(readdirSync(folder()).sort(), [
      'config.json',
      'model-00001-of-00003.safetensors',
      'model-00002-of-00003.safetensors',
      'model-00003-of-00003.safetensors',
      'model.safetensors.index.json',
      'model_notes.safetensors',
    ])
    const map = sizes
      .map((_, index) => `    "t${index}": "model-0000${[1, 2, 2, 3, 3, 3][index]}-of-00003.safetensors"`)
      .join(',\n')
    assert.equal(
      readFileSync(join(folder(), 'model.safetensors.index.json'), 'utf8'),
      `{\n  "metadata": {\n    "total_size": 24\n  },\n  "weight_map": {\n${map}\n  }\n}\n`,
    )
    const source = await openTensorSource(folder())
    assert.deepEqual(source.warnings, [])
    for (const [index, size] of sizes.entries())
      assert.deepEqual(await readTensorBytes(source.tensors.get(`t${index}`)!), bytes(size, size))
  })

  it('leaves nothing when the disk fills up before the files are published', async () => {
    const whole = failingFileSystem(Infinity, 'ENOSPC')
    await writeTensors(await ModelWriter.open(folder(), tensors, { maxShardSize: 10, fs: whole }), tensors)
    const target = join(folder(), 'other')
    await nodeFileSystem.makeFolder(target)
    const unpublished = 3 * 2 + sizes.length + 3 // create and header, tensors, syncs
    for (let failAt = 0; failAt < unpublished; failAt++) {
      const fs = failingFileSystem(failAt, 'ENOSPC')
      const save = async (): Promise<unknown> =>
        writeTensors(await ModelWriter.open(target, tensors, { maxShardSize: 10, fs }), tensors)
      await assert.rejects(save(), failure('FILE_WRITE', /disk is full/))
      assert.deepEqual(readdirSync(target), [])
    }
    assert.ok(existsSync(join(folder(), 'model.safetensors.index.json')))
  })

  it('reads sizes', () => {
    assert.deepEqual(['5GB', '500 MB', '2GiB', '1.5kb', 10, '7', '3b'].map(parseSize), [5e9, 5e8, 2 ** 31, 1500, 10, 7, 3])
    for (const wrong of ['', 'GB', '5 XB', '-1', '0', 'NaN', 0.5])
      assert.throws(() => parseSize(wrong), failure('USAGE', /is not a size/))
  })
})
