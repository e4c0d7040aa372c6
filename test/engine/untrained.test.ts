import assert from 'node:assert/strict'
import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { FastLanguageModel } from '../../engine/fastLanguageModel.ts'
import { openTensorSource } from '../../engine/io/tensorSource.ts'
import { fillUntrainedRows } from '../../engine/train/fillUntrainedRows.ts'
import { prepareRun } from '../../engine/train/prepareRun.ts'
import { makeRecipe, starter, temporaryFolder, writeJsonl } from './support.ts'

/** A token of the vocabulary that becomes an added one, whose row is empty. */
const token = 500

interface Definition {
  readonly added_tokens: { id: number; content: string; special: boolean }[]
  readonly model: { readonly vocab: Readonly<Record<string, number>> }
}

describe('rows of tokens that were never trained', () => {
  const folder = temporaryFolder()
  const model = join(folder, 'model')
  let text = ''

  before(async () => {
    cpSync(starter, model, { recursive: true })
    const path = join(model, 'tokenizer.json')
    const definition = JSON.parse(readFileSync(path, 'utf8')) as Definition
    text = Object.entries(definition.model.vocab).find(([, id]) => id === token)![0]
    definition.added_tokens.push({ id: token, content: text, special: true })
    writeFileSync(path, JSON.stringify(definition))
    const { tensors } = await openTensorSource(model)
    const embedding = [...tensors.values()].find(({ name }) => name.endsWith('embed_tokens.weight'))!
    const bytes = readFileSync(embedding.path)
    const rowBytes = embedding.bytes / embedding.shape[0]!
    bytes.fill(0, embedding.offset + token * rowBytes, embedding.offset + (token + 1) * rowBytes)
    writeFileSync(embedding.path, bytes)
  })

  const recipe = (modulesToSave: readonly string[]) =>
    makeRecipe(join(folder, 'run'), {
      model,
      data: { local_dataset: writeJsonl(join(folder, 'd.jsonl'), [{ text: `Once ${text} upon` }, { text: `${text}${text}` }]) },
      training: { max_steps: 1, batch_size: 2 },
      lora: { modules_to_save: modulesToSave },
    })

  it('are found in the data; frozen ones are told, trained ones are filled with the mean', async () => {
    const frozen = await prepareRun(recipe([]))
    assert.equal(frozen.untrained.size, 0)
    assert.match(frozen.warnings.join('\n'), /whose embeddings were never trained, and which stay as they are: add embed_tokens/)
    const prepared = await prepareRun(recipe(['embed_tokens', 'lm_head']))
    assert.deepEqual([...prepared.untrained.entries()], [[token, 3]])
    const loaded = await prepared.model.load()
    try {
      const { name, rows, cols } = loaded.patched.layout.parameters.find((parameter) => parameter.name.includes('embed_tokens'))!
      const before = loaded.readParameter(name)
      assert.ok(before.subarray(token * cols, (token + 1) * cols).every((value) => value === 0))
      fillUntrainedRows(loaded, prepared.untrained)
      const after = loaded.readParameter(name)
      let sum = 0
      for (let row = 0; row < rows; row++) if (row !== token) sum += before[row * cols]!
      assert.ok(Math.abs(after[token * cols]! - sum / (rows - 1)) < 1e-6)
      assert.deepEqual(after.subarray(0, token * cols), before.subarray(0, token * cols))
    } finally {
      prepared.model.dispose()
    }
    assert.equal(
      (await prepareRun({ ...recipe(['embed_tokens']), model: { ...recipe([]).model, fix_tokenizer: false } })).untrained.size,
      0,
    )
    assert.ok((await FastLanguageModel.fromPretrained({ modelName: model })).tokenizer.specialIds.has(token))
  })
})
