import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { relative } from 'node:path'
import { fetchDataset, type DatasetChoice } from '../../../engine/hub/datasetRepository.ts'
import type { HubOptions } from '../../../engine/hub/snapshot.ts'
import { failure } from '../io/support.ts'
import { noise, useHub } from './support.ts'

const rows = (text: string): string => `${JSON.stringify({ text })}\n`

describe('data sets by name on the Hub', () => {
  const hub = useHub()
  const fetch = async (
    { subset = null, splits = ['train'] }: Partial<DatasetChoice> = {},
    options: HubOptions = {},
    name = 'tiny/data',
  ) => {
    const found = await fetchDataset(name, { subset, splits }, { settings: hub.settings(), ...options })
    return Object.fromEntries(
      [...found.splits].map(([split, files]) => [
        split,
        files.map((file) => relative(hub.cache, file).split('/').slice(3).join('/')),
      ]),
    )
  }

  it('fetch the files of the wanted splits and no others', async () => {
    hub.server.push('datasets/tiny/data', {
      'README.md': '# Data',
      'train.jsonl': rows('a'),
      'test.jsonl': rows('b'),
      'validation.jsonl': rows('c'),
      'big.bin': noise(5000),
    })
    assert.deepEqual(await fetch(), { train: ['train.jsonl'] })
    const { splits } = await fetchDataset('tiny/data', { subset: null, splits: ['train', 'test'] }, { settings: hub.settings() })
    assert.equal(readFileSync(splits.get('test')![0]!, 'utf8'), rows('b'))
    assert.ok(!hub.server.take().some(({ url }) => /validation|big/.test(url)))
    await assert.rejects(
      fetch({ splits: ['nope'] }),
      failure('DATA', /tiny\/data has no split "nope"/, /It has test, train, validation/),
    )
  })

  it('heed the configurations of the card', async () => {
    hub.server.push('datasets/tiny/data', {
      'README.md':
        '---\nconfigs:\n- config_name: en\n  data_files:\n  - {split: train, path: en/*.jsonl}\n- config_name: de\n  data_files: de/all.jsonl\n---\n',
      'en/a.jsonl': rows('a'),
      'en/b.jsonl': rows('b'),
      'de/all.jsonl': rows('c'),
    })
    assert.deepEqual(await fetch({ subset: 'en' }), { train: ['en/a.jsonl', 'en/b.jsonl'] })
    assert.deepEqual(await fetch({ subset: 'de' }), { train: ['de/all.jsonl'] })
    await assert.rejects(fetch(), failure('DATA', /2 configurations/, /en, de/))
  })

  it('take what the Hub has converted when nothing else can be read', async () => {
    hub.server.push('datasets/tiny/data', { 'README.md': '# Data', 'data.zip': noise(3000) })
    await assert.rejects(fetch(), failure('DATA', /files of the kinds \.zip/))
    hub.server.push(
      'datasets/tiny/data',
      {
        'default/train/0000.parquet': noise(3000),
        'default/train/0001.parquet': noise(3000, 2),
        'default/test/0000.parquet': noise(2000),
      },
      { branch: 'refs/convert/parquet' },
    )
    const notices: string[] = []
    assert.deepEqual(await fetch({}, { onNotice: (notice) => notices.push(notice) }), {
      train: ['default/train/0000.parquet', 'default/train/0001.parquet'],
    })
    assert.match(notices.join(), /Parquet files that the Hub has made/)
    const settings = hub.settings({ offline: true })
    assert.deepEqual(
      await fetchDataset('tiny/data', { subset: null, splits: ['train'] }, { settings }).then(
        ({ splits }) => splits.get('train')!.length,
      ),
      2,
    )
  })

  it('refuse shards that are missing', async () => {
    hub.server.push('datasets/tiny/data', { 'data/train-00000-of-00002.parquet': noise(2000) })
    await assert.rejects(fetch(), failure('DATA', /"data\/train-00001-of-00002\.parquet" should be there/))
  })

  it('at a revision that is part of the name', async () => {
    hub.server.push('datasets/tiny/data', { 'train.jsonl': rows('new') })
    const old = hub.server.push('datasets/tiny/data', { 'train.jsonl': rows('old') }, { branch: 'v1' })
    const found = await fetchDataset('tiny/data@v1', { subset: null, splits: ['train'] }, { settings: hub.settings() })
    assert.equal(found.commit, old)
    assert.equal(readFileSync(found.splits.get('train')![0]!, 'utf8'), rows('old'))
  })

  it('that do not exist are told', async () => {
    await assert.rejects(fetch({}, {}, 'tiny/nowhere'), failure('HUB', /There is no data set tiny\/nowhere/))
  })
})
