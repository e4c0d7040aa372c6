import assert from 'node:assert/strict'
import { readRecipeData } from '../../../engine/data/recipeData.ts'
import { diagnoseRecipe } from '../../../engine/recipe/parseRecipe.ts'
import { fileWith, fixtureTokenizer, folderWith, jsonl, rejects, removeFolders } from './support.ts'

async function read(data: string, more = '') {
  const { recipe, issues } = diagnoseRecipe(`model: m\ndata:\n${data}${more}`, 'finetune.yaml', {})
  assert.ok(recipe !== null, JSON.stringify(issues))
  return readRecipeData(recipe, await fixtureTokenizer('stories260k'))
}
const rows = jsonl(Array.from({ length: 20 }, (_, index) => ({ question: `q${index}`, answer: 'a' })))

describe('data of a recipe', () => {
  after(removeFolders)

  it('maps columns, as a mapping or as text, and takes slices and held-out rows', async () => {
    const file = fileWith('d.jsonl', rows)
    for (const columns of ['{prompt: question, completion: answer}', '"prompt=question,completion=answer"']) {
      const { train, evaluation } = await read(
        `  local_dataset: ${file}\n  columns: ${columns}\n  split: train[:50%]\n  eval_split: 2\n`,
      )
      assert.deepEqual([train.format.format, train.samples.length, evaluation?.samples.length], ['completion', 8, 2])
    }
    const sliced = await read(
      `  local_dataset: ${file}\n  columns: {prompt: question, completion: answer}\n  split: train[:90%]\n  eval_split: train[90%:]\n`,
    )
    assert.deepEqual([sliced.train.samples.length, sliced.evaluation?.samples.map(({ line }) => line)], [18, [19, 20]])
    const prompts = await read(
      `  local_dataset: ${file}\n  columns: {prompt: question, completion: answer}\n  train_on_prompt: true\n`,
    )
    assert.deepEqual(prompts.train.samples[0]!.labels, prompts.train.samples[0]!.ids)
  })

  it('takes a chat template from a file, and the splits of a folder', async () => {
    const template = fileWith('t.jinja', '{{ messages[0].content }}')
    const folder = folderWith({
      'train.jsonl': jsonl([{ messages: [{ role: 'user', content: 'one' }] }]),
      'test.jsonl': jsonl([{ messages: [{ role: 'user', content: 'two' }] }]),
    })
    const { train, evaluation } = await read(`  dataset: ${folder}\n  chat_template: ${template}\n  eval_split: test\n`)
    const tokenizer = await fixtureTokenizer('stories260k')
    assert.deepEqual(
      [train, evaluation!].map(({ samples }) => tokenizer.decode(samples[0]!.ids, { skipSpecialTokens: true }).trim()),
      ['one', 'two'],
    )
    await rejects(read(`  dataset: ${folder}\n  chat_template: ${template}.missing/x\n`), 'FILE_NOT_FOUND', /chat template/)
  })

  it('refuses columns that play no known part', () => {
    const { issues } = diagnoseRecipe(
      'model: m\ndata:\n  local_dataset: d.jsonl\n  columns: {question: prompt}\n',
      'finetune.yaml',
      {},
    )
    assert.match(issues.map(({ message }) => message).join('\n'), /data\.columns/)
    const alone = diagnoseRecipe('model: m\ndata:\n  local_dataset: d.jsonl\n  response_part: "A:"\n', 'finetune.yaml', {})
    assert.match(alone.issues.map(({ message }) => message).join('\n'), /belong together/)
  })
})
