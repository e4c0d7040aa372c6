import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { FastLanguageModel } from '../../engine/fastLanguageModel.ts'
import { prepareRun } from '../../engine/train/prepareRun.ts'
import { makeRecipe, temporaryFolder, writeJsonl } from './support.ts'

type Json = Readonly<Record<string, unknown>>
const json = (...path: string[]): Json => JSON.parse(readFileSync(join(...path), 'utf8')) as Json

describe('tokenizer of what was trained', () => {
  const folder = temporaryFolder()
  const rows = [
    {
      messages: [
        { role: 'user', content: 'Who?' },
        { role: 'assistant', content: 'Lily.' },
      ],
    },
  ]

  it('is saved with the template of the recipe and what ends its turns, and generates with them', async () => {
    const recipe = makeRecipe(join(folder, 'run'), {
      data: { local_dataset: writeJsonl(join(folder, 'd.jsonl'), rows), chat_template: 'chatml' },
    })
    const prepared = await prepareRun({ ...recipe, training: { ...recipe.training, train_on_completions: true } })
    assert.match(
      prepared.warnings.join('\n'),
      /Tokenizer: the chat template ends turns with "<\|im_end\|>", texts end with "<\/s>"/,
    )
    const { tokenizer } = prepared.model
    const [sample] = prepared.samples
    // The row that always ended texts is trained to end the answer.
    assert.ok([...sample!.labels].includes(tokenizer.eosId!))
    assert.equal(tokenizer.tokenOf(tokenizer.eosId!), '<|im_end|>')
    const [adapter, merged] = [join(folder, 'adapter'), join(folder, 'merged')]
    await prepared.model.load()
    try {
      await prepared.model.savePretrained(adapter)
      await prepared.model.savePretrainedMerged(merged, { maxShardSize: '5GB', probes: [sample!.ids] })
    } finally {
      prepared.model.dispose()
    }
    for (const saved of [adapter, merged]) {
      const config = json(saved, 'tokenizer_config.json')
      assert.deepEqual([config.eos_token, config.padding_side], ['<|im_end|>', 'left'])
      assert.match(String(config.chat_template), /<\|im_start\|>/)
    }
    for (const modelName of [adapter, merged]) {
      const generator = await FastLanguageModel.forInference({ modelName })
      try {
        assert.deepEqual([generator.tokenizer.eosToken, generator.tokenizer.eosId], ['<|im_end|>', tokenizer.eosId])
        assert.deepEqual([...generator.tokenizer.encode('a<|im_end|>')], [...tokenizer.encode('a<|im_end|>')])
      } finally {
        generator.dispose()
      }
    }
    const own = await prepareRun({ ...recipe, data: { ...recipe.data, map_eos_token: false } })
    assert.equal(own.model.tokenizer.eosToken, '</s>')
  })
})
