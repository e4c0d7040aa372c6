import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { closeSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { buildDataset } from '../../../engine/data/dataset.ts'
import { readRecipeData } from '../../../engine/data/recipeData.ts'
import { diagnoseRecipe } from '../../../engine/recipe/parseRecipe.ts'
import { PreviewCache } from '../../../engine/rpc/previewData.ts'
import { fileWith, fixtures, fixtureTokenizer, folderWith, jsonl, rejects, removeFolders } from './support.ts'

function recipeOf(data: string, training = '') {
  const { recipe, issues } = diagnoseRecipe(
    `model: ${join(fixtures, 'stories260k')}\ndata:\n${data}training:\n  max_seq_length: 512\n${training}`,
    'finetune.yaml',
    {},
  )
  assert.ok(recipe !== null, JSON.stringify(issues))
  return recipe
}
const read = async (data: string, training = '') =>
  readRecipeData(recipeOf(data, training), await fixtureTokenizer('stories260k'))
const issuesOf = (data: string, training = ''): string =>
  diagnoseRecipe(`model: m\ndata:\n${data}training:\n  max_seq_length: 512\n${training}`, 'finetune.yaml', {})
    .issues.map(({ message }) => message)
    .join('\n')
const texts = (count: number) => jsonl(Array.from({ length: count }, (_, index) => ({ text: `text ${index}` })))
const pairs = (count: number) => jsonl(Array.from({ length: count }, (_, index) => ({ prompt: `p${index} `, completion: 'a' })))

describe('mixing of sources', () => {
  after(removeFolders)

  it('takes each source in the share of its weight, in its own format, until one is used up', async () => {
    const [a, b] = [fileWith('a.jsonl', texts(90)), fileWith('b.jsonl', pairs(20))]
    const files = `  local_dataset: [${a}, ${b}]\n  mix_weights: [3, 1]\n`
    const { train } = await read(files)
    const from = (file: string) => train.samples.filter((sample) => sample.file === file).length
    assert.deepEqual([from(a), from(b), train.samples.length, train.rows.rows, train.statistics.samples], [62, 20, 82, 110, 82])
    for (let end = 4; end <= 80; end += 4)
      assert.equal(train.samples.slice(0, end).filter((sample) => sample.file === b).length, end / 4)
    assert.equal(new Set(train.samples.map(({ file, line }) => `${file}:${line}`)).size, 82)
    assert.match(train.format.reason, /^2 sources mixed: \S+a\.jsonl 62 of 90, \S+b\.jsonl 20 of 20; formats text, completion$/)
    const again = await read(files)
    assert.deepEqual(
      again.train.samples.map(({ line }) => line),
      train.samples.map(({ line }) => line),
    )
    assert.notDeepEqual(
      (await read(files, '  random_seed: 4\n')).train.samples.map(({ line }) => line),
      train.samples.map(({ line }) => line),
    )
    assert.equal((await read(`${files}  max_samples: 10\n`)).train.samples.length, 10)
  })

  it('repeats the smaller one when all rows are wanted', async () => {
    const { train } = await read(
      `  local_dataset: [${fileWith('a.jsonl', texts(90))}, ${fileWith('b.jsonl', texts(10))}]\n  mix_weights: [0.5, 0.5]\n  mix_until: all\n`,
    )
    assert.equal(new Set(train.samples.map(({ file, line }) => `${file}:${line}`)).size, 100)
    assert.ok(train.samples.length >= 179 && train.samples.length <= 180)
    assert.match(train.format.reason, /b\.jsonl \d+ of 10 \(repeated\)/)
  })

  it('never trains what is held out', async () => {
    const { train, evaluation } = await read(
      `  local_dataset: [${fileWith('a.jsonl', texts(40))}, ${fileWith('b.jsonl', texts(10))}]\n  mix_weights: [1, 1]\n  mix_until: all\n  eval_split: 0.2\n`,
    )
    const place = ({ file, line }: { file: string; line: number }) => `${file}:${line}`
    assert.equal(evaluation!.samples.length, 10)
    const held = new Set(evaluation!.samples.map(place))
    assert.ok(train.samples.every((sample) => !held.has(place(sample))))
  })

  it('is shown in the preview, and refuses what does not fit', async () => {
    const [a, b] = [fileWith('a.jsonl', texts(90)), fileWith('b.jsonl', pairs(20))]
    const recipe = (weights: string) =>
      `model: ${join(fixtures, 'stories260k')}\ndata:\n  local_dataset: [${a}, ${b}]\n  mix_weights: ${weights}\n`
    const context = { signal: new AbortController().signal, notify: () => undefined }
    const { preview } = await new PreviewCache().preview({ recipe: recipe('[1, 1]'), rows: 20 }, context)
    assert.deepEqual([preview?.samples, preview?.rows.rows], [20, 20])
    assert.match(issuesOf(`  local_dataset: [${a}, ${b}]\n  mix_weights: [1]\n`), /has 1 weight for 2 sources/)
    assert.match(issuesOf(`  local_dataset: [${a}, ${b}]\n  mix_weights: [1, -1]\n`), /mix_weights/)
    assert.equal(issuesOf(`  dataset: x/y\n  local_dataset: ${a}\n  mix_weights: [1, 2]\n`), '')
    await rejects(
      read(`  local_dataset: [${a}, ${fileWith('c.jsonl', '')}]\n  mix_weights: [1, 1]\n`),
      'DATA',
      /c\.jsonl: the data set is empty/,
    )
  })
})

describe('conversations of several rows', () => {
  after(removeFolders)

  it('join each row with others, chosen by the seed; every row begins one', async () => {
    const file = fileWith('d.jsonl', jsonl(Array.from({ length: 50 }, (_, index) => ({ q: `q${index}.`, out: `a${index}.` }))))
    const data = `  local_dataset: ${file}\n  merged_prompt: "{q}"\n  columns: {output: out}\n  chat_template: "{% for m in messages %}{{ m.content }}{% endfor %}"\n`
    const tokenizer = await fixtureTokenizer('stories260k')
    const conversations = async (more: string, training = '') =>
      (await read(data + more, training)).train.samples.map(({ ids }) =>
        tokenizer.decode(ids, { skipSpecialTokens: true }).trim(),
      )
    const three = await conversations('  conversation_extension: 3\n')
    const numbers = three.map((text) =>
      [...text.matchAll(/q(\d+)\.a(\d+)\./g)].map(([, q, a]) => (assert.equal(q, a), Number(q))),
    )
    assert.ok(numbers.every((turns, index) => turns.length === 3 && turns[0] === index))
    for (const turn of [1, 2]) assert.equal(new Set(numbers.map((turns) => turns[turn])).size, 50)
    assert.deepEqual(await conversations('  conversation_extension: 3\n'), three)
    assert.notDeepEqual(await conversations('  conversation_extension: 3\n', '  random_seed: 9\n'), three)
    assert.equal((await conversations(''))[7], 'q7.a7.')
    await rejects(
      read(`  local_dataset: ${fileWith('t.jsonl', texts(3))}\n  conversation_extension: 2\n`),
      'DATA',
      /t\.jsonl:1: running text cannot be joined/,
    )
    const broken = fileWith('b.jsonl', `${jsonl([{ messages: [{ role: 'user', content: 'a' }] }])}{"messages":\n`)
    await rejects(
      read(`  local_dataset: ${broken}\n  conversation_extension: 2\n  chat_template: chatml\n`),
      'DATA',
      /b\.jsonl:2: not valid JSON/,
    )
  })
})

describe('large data sets', () => {
  after(removeFolders)

  it('are read only as far as a streamed run needs them', async () => {
    const file = fileWith('d.jsonl', texts(5000))
    const { train, evaluation } = await read(
      `  local_dataset: ${file}\n  streaming: true\n  eval_split: 10\n`,
      '  max_steps: 5\n  batch_size: 4\n  gradient_accumulation_steps: 2\n',
    )
    assert.deepEqual([train.samples.length + evaluation!.samples.length, evaluation!.samples.length], [512, 10])
    assert.match(issuesOf(`  local_dataset: ${file}\n  streaming: true\n`), /data\.streaming needs training\.max_steps/)
    const all = await buildDataset({ files: [file], maxSeqLength: 512 }, await fixtureTokenizer('stories260k'))
    assert.deepEqual(all.samples.length, 5000)
  })

  it('larger than the memory are read through a window: 96 MB with a heap of 40 MB', function () {
    const folder = folderWith({})
    const path = join(folder, 'large.jsonl')
    const descriptor = openSync(path, 'w')
    // Few long rows: what is measured is memory, not the time of tokenizing.
    const row = `${JSON.stringify({ prompt: 'word '.repeat(2400), completion: 'x' })}\n`
    for (let count = 0; count < 8000; count++) writeSync(descriptor, row)
    closeSync(descriptor)
    const code = `
      const { buildDataset } = await import(${JSON.stringify(join(import.meta.dirname, '../../../engine/data/dataset.ts'))})
      const { loadTokenizer } = await import(${JSON.stringify(join(import.meta.dirname, '../../../engine/data/tokenizer.ts'))})
      const tokenizer = await loadTokenizer(${JSON.stringify(join(fixtures, 'stories260k'))})
      const { samples } = await buildDataset({ files: [${JSON.stringify(path)}], maxSeqLength: 16, tooLong: 'truncate', trainOnPrompt: true, cacheFolder: ${JSON.stringify(folder)} }, tokenizer)
      console.log(samples.length)`
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      ['--max-old-space-size=40', '--max-semi-space-size=4', '--import', 'tsx', '--input-type=module', '-e', code],
      { encoding: 'utf8' },
    )
    assert.equal(status, 0, stderr)
    assert.equal(stdout.trim(), '8000')
  })
})
