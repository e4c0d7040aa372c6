import assert from 'node:assert/strict'
import { basename } from 'node:path'
import { readRecipeData } from '../../../engine/data/recipeData.ts'
import type { HubOptions } from '../../../engine/hub/snapshot.ts'
import { diagnoseRecipe } from '../../../engine/recipe/parseRecipe.ts'
import { localData } from '../../../engine/train/hubSources.ts'
import { fileWith, fixtureTokenizer, jsonl, removeFolders } from '../data/support.ts'
import { failure } from '../io/support.ts'
import { useHub } from './support.ts'

const texts = (count: number, name = 'text') => jsonl(Array.from({ length: count }, (_, index) => ({ text: `${name} ${index}` })))

describe('data of a recipe on the Hub', () => {
  const hub = useHub()
  after(removeFolders)
  const recipeOf = (data: string) => {
    const { recipe, issues } = diagnoseRecipe(`model: m\ndata:\n${data}training: {max_seq_length: 256}\n`, 'finetune.yaml', {})
    assert.ok(recipe !== null, JSON.stringify(issues))
    return recipe
  }
  const read = async (data: string, options: HubOptions = {}) => {
    const recipe = recipeOf(data)
    const local = await localData(recipe, undefined, { settings: hub.settings(), ...options })
    return readRecipeData({ ...recipe, data: local.data }, await fixtureTokenizer('stories260k'), { groups: local.groups })
  }
  const lines = ({ samples }: { samples: readonly { file: string; line: number }[] } = { samples: [] }) =>
    samples.map(({ file, line }) => `${basename(file)}:${line}`)

  beforeEach(() => {
    hub.server.push('datasets/tiny/data', { 'README.md': '# Data', 'train.jsonl': texts(20), 'test.jsonl': texts(10, 'test') })
  })

  it('are sliced, for training and for evaluation', async () => {
    const same = await read('  dataset: tiny/data\n  split: train[:90%]\n  eval_split: train[90%:]\n')
    assert.deepEqual([same.train.samples.length, lines(same.evaluation)], [18, ['train.jsonl:19', 'train.jsonl:20']])
    const other = await read('  dataset: tiny/data\n  eval_split: test[2:4]\n')
    assert.deepEqual([other.train.samples.length, lines(other.evaluation)], [20, ['test.jsonl:3', 'test.jsonl:4']])
    assert.equal((await read('  dataset: tiny/data\n  eval_split: test\n')).evaluation?.samples.length, 10)
    await assert.rejects(
      read('  dataset: tiny/data\n  eval_split: "test[5"\n'),
      failure('DATA', /data\.eval_split: "test\[5" is no split/),
    )
  })

  it('are mixed with files of this machine', async () => {
    const own = fileWith('own.jsonl', texts(20, 'own'))
    const { train } = await read(`  dataset: tiny/data\n  local_dataset: ${own}\n  mix_weights: [1, 1]\n`)
    assert.deepEqual([train.samples.length, train.samples.filter(({ file }) => file === own).length], [40, 20])
  })

  it('come from the cache alone when that is asked for', async () => {
    await assert.rejects(read('  dataset: tiny/data\n', { cacheOnly: true }), failure('HUB', /not in the Hub cache/))
    await read('  dataset: tiny/data\n')
    hub.server.take()
    assert.equal((await read('  dataset: tiny/data\n', { cacheOnly: true })).train.samples.length, 20)
    assert.deepEqual(hub.server.take(), [])
  })

  it('that are gated say what to do, without a token and with one that has no access', async () => {
    hub.server.push('datasets/tiny/gated', { 'README.md': '# Data', 'train.jsonl': texts(2) }, { gated: true })
    const gated = '  dataset: tiny/gated\n'
    await assert.rejects(
      read(gated),
      failure(
        'HUB',
        /tiny\/gated is gated/,
        /Accept its licence at \S+datasets\/tiny\/gated while logged in\. Then: Set HF_TOKEN/,
      ),
    )
    // The Hub answers 403 to an account that has not accepted the terms.
    hub.server.faults.push({
      path: 'tiny/gated/resolve',
      host: 'hub',
      status: 403,
      headers: { 'x-error-code': 'GatedRepo', 'x-error-message': 'Access to dataset tiny/gated is restricted' },
      times: 99,
    })
    await assert.rejects(
      read(gated, { settings: hub.settings({ token: 'hf_loopbackTokenForTests0123456789' }) }),
      failure('HUB', /tiny\/gated is gated/, /The token .* has to belong to the same account/),
    )
  })
})
