import assert from 'node:assert/strict'
import { readDatasetCard } from '../../../engine/hub/datasetCard.ts'
import { chooseConfig, conventionalSplits, dataPaths, missingShards, splitsOf } from '../../../engine/hub/datasetSplits.ts'
import { matchesGlob } from '../../../engine/hub/globPattern.ts'
import { failure } from '../io/support.ts'
import { processorTime } from '../../machineTime.ts'

const splits = (paths: readonly string[]) => Object.fromEntries(conventionalSplits(paths))

describe('files of a data set by convention', () => {
  it('takes shards in data/ by the name of their split, whatever it is', () => {
    const paths = [
      'data/train-00000-of-00002.parquet',
      'data/train-00001-of-00002.parquet',
      'data/random-00000-of-00001-ab12cd34ef56ab12.parquet',
      'test.parquet',
    ]
    assert.deepEqual(splits(paths), { train: paths.slice(0, 2), random: [paths[2]] })
  })

  it('takes folders, then names of files, then all', () => {
    assert.deepEqual(splits(['train/a.jsonl', 'train/b.jsonl', 'dev/a.jsonl', 'x.jsonl']), {
      train: ['train/a.jsonl', 'train/b.jsonl'],
      validation: ['dev/a.jsonl'],
    })
    assert.deepEqual(splits(['my_train_file.jsonl', 'eval.jsonl', 'valid-2.jsonl']), {
      train: ['my_train_file.jsonl'],
      test: ['eval.jsonl'],
      validation: ['valid-2.jsonl'],
    })
    assert.deepEqual(splits(['constraints.jsonl', 'trainer.jsonl']), { train: ['constraints.jsonl', 'trainer.jsonl'] })
  })

  it('takes the most frequent kind that can be read, and no files about the data', () => {
    assert.deepEqual(dataPaths(['README.md', 'a.jsonl', 'b.json', 'c.csv', 'dataset_infos.json', '.hidden.json', '__x/y.json']), [
      'a.jsonl',
      'b.json',
    ])
    assert.deepEqual(dataPaths(['b.parquet', 'a.parquet', 'x.json', 'LICENSE.txt']), ['a.parquet', 'b.parquet'])
    assert.deepEqual(dataPaths(['requirements.txt', 'a.txt', 'b.md']), ['a.txt'])
    assert.deepEqual(dataPaths(['a.arrow', 'b.zip']), [])
  })

  it('tells shards that are promised and missing', () => {
    assert.deepEqual(missingShards(['t-00000-of-00003.parquet', 't-00002-of-00003.parquet']), ['t-00001-of-00003.parquet'])
    assert.deepEqual(missingShards(['t-00000-of-00001.parquet', 'x.jsonl']), [])
    assert.deepEqual(
      missingShards(['t-00000-of-00002-ab12cd34ef56ab12.parquet', 't-00001-of-00002-0912cd34ef56ab12.parquet']),
      [],
    )
  })
})

describe('the card of a data set', () => {
  const card = (yaml: string) => readDatasetCard(`---\n${yaml}\n---\n# Data\n`)
  const paths = [
    'main/train.jsonl',
    'main/x/a.jsonl',
    'main/x/y/b.jsonl',
    'extra/test-1.jsonl',
    'extra/test-2.jsonl',
    'other.csv',
  ]

  it('names the files of each split in every form that is in use', () => {
    const [a, b, c, d] = card(`configs:
- config_name: a
  data_files:
  - split: train
    path: main/*.jsonl
  - split: test
    path: ["extra/test-*.jsonl", other.csv]
- config_name: b
  data_files: main/**/*.jsonl
- config_name: c
  default: true
  data_dir: ./extra/
- config_name: d
  data_files: {train: main, test: ['extra/test-[!1].jsonl']}`)
    const of = (config: typeof a) => Object.fromEntries(splitsOf('o/n', config, null, paths))
    assert.deepEqual(of(a), { train: ['main/train.jsonl'], test: ['extra/test-1.jsonl', 'extra/test-2.jsonl', 'other.csv'] })
    assert.deepEqual(of(b), { train: ['main/train.jsonl', 'main/x/a.jsonl', 'main/x/y/b.jsonl'] })
    assert.deepEqual(of(c), { test: ['extra/test-1.jsonl', 'extra/test-2.jsonl'] })
    assert.deepEqual(of(d), { train: ['main/train.jsonl', 'main/x/a.jsonl', 'main/x/y/b.jsonl'], test: ['extra/test-2.jsonl'] })
    assert.equal(chooseConfig('o/n', [a!, b!, c!], null)?.name, 'c')
    assert.equal(chooseConfig('o/n', [a!], null)?.name, 'a')
    assert.equal(chooseConfig('o/n', [a!, b!, c!], 'b')?.name, 'b')
    assert.throws(() => chooseConfig('o/n', [a!, b!], null), failure('DATA', /2 configurations/, /a, b/))
    assert.throws(() => chooseConfig('o/n', [a!, b!], 'x'), failure('DATA', /no configuration "x"/, /a, b/))
  })

  it('that cannot be read counts as none', () => {
    for (const text of [
      '# Data',
      '---\n: [\n---\n',
      '---\nconfigs: 3\n---\n',
      '---\nconfigs: [1, {data_files: {train: 3}}]\n---\n',
      '---\nlicense: mit\n---\n',
      '',
    ])
      assert.deepEqual(readDatasetCard(text), [], text)
    assert.equal(readDatasetCard('---\r\nconfigs:\r\n- data_files: a.jsonl\r\n---\r\n')[0]?.name, 'default')
  })

  it('without one, data.subset is a folder', () => {
    assert.deepEqual(Object.fromEntries(splitsOf('o/n', undefined, 'extra', paths)), {
      test: ['extra/test-1.jsonl', 'extra/test-2.jsonl'],
    })
    assert.throws(() => splitsOf('o/n', undefined, 'nowhere', paths), failure('DATA', /no folder "nowhere"/))
    const [remote] = card('configs:\n- data_files: https://example.com/a.jsonl')
    assert.throws(() => splitsOf('o/n', remote, null, paths), failure('DATA', /outside of the repository/))
  })
})

describe('patterns', () => {
  it('match as in data sets', () => {
    const cases: [string, string, boolean][] = [
      ['a.jsonl', 'a.jsonl', true],
      ['a.jsonl', 'b/a.jsonl', false],
      ['data', 'data/x/y.json', true],
      ['data/', 'data/x.json', true],
      ['data', 'data2/x.json', false],
      ['*.json', 'a.json', true],
      ['*.json', 'x/a.json', false],
      ['**/*.json', 'a.json', true],
      ['**/*.json', 'x/y/a.json', true],
      ['**', 'x/y/a.json', true],
      ['x/**/a.json', 'x/a.json', true],
      ['x/**/a.json', 'xa.json', false],
      ['x/**', 'x/y/z', true],
      ['a?c', 'abc', true],
      ['a?c', 'a/c', false],
      ['[0-9][0-9].json', '07.json', true],
      ['[!0-9].json', '7.json', false],
      ['[!0-9].json', 'x.json', true],
      ['a[b', 'a[b', true],
      ['a.b*', 'axb', false],
      ['*a*a*a', 'aaa', true],
      ['*a*a*a', 'aab', false],
      ['train-*-of-*.parquet', 'train-00000-of-00001.parquet', true],
    ]
    for (const [pattern, path, expected] of cases) assert.equal(matchesGlob(pattern, path), expected, `${pattern} ${path}`)
  })

  it('of an unknown card take no time to speak of', async () => {
    const time = await processorTime(() => assert.equal(matchesGlob(`${'**a'.repeat(200)}b`, 'a'.repeat(900)), false))
    assert.ok(time < 1000, `${time} ms`)
  })
})
