import assert from 'node:assert/strict'
import type { CompletionItem, TextEdit } from 'vscode-languageserver'
import { yamlValue } from '../../../src/language/fieldText.ts'
import { recipeFields, sectionNames } from '#shared/recipe.ts'
import { complete } from '../../../src/language/completion.ts'
import { diagnoseSchema } from '../../../src/language/diagnostics.ts'
import { expandSnippet, sectionSnippets, wholeRecipes } from '../../../src/language/snippets.ts'
import { applyEdits, SourceText } from '../../../src/language/text.ts'
import type { Workspace } from '../../../src/language/workspace.ts'
import { cursor, world } from './support.ts'
import { processorTime } from '../../machineTime.ts'

async function items(marked: string, workspace: Workspace = world()): Promise<CompletionItem[]> {
  const { source, position } = cursor(marked)
  return complete(source, position, workspace)
}

async function labels(marked: string, workspace?: Workspace): Promise<string[]> {
  return (await items(marked, workspace)).map(({ label }) => label)
}

/** The text after an item was taken. */
async function take(marked: string, label: string, workspace?: Workspace): Promise<string> {
  const { source } = cursor(marked)
  const item = (await items(marked, workspace)).find((candidate) => candidate.label === label)
  assert.ok(item, `no ${label} at ${JSON.stringify(marked)}`)
  return expandSnippet(applyEdits(source, [item.textEdit as TextEdit]))
}

const found = world({
  models: () =>
    Promise.resolve([
      {
        name: './models/tiny',
        folder: '/w/models/tiny',
        kind: 'model',
        from: 'workspace',
        architecture: 'LlamaForCausalLM',
        bytes: 1024,
      },
      { name: './outputs/a', folder: '/w/outputs/a', kind: 'adapter', from: 'workspace', architecture: undefined, bytes: 10 },
    ]),
  datasets: () =>
    Promise.resolve([
      { name: 'data/chat.jsonl', path: '/w/data/chat.jsonl', bytes: 2048 },
      { name: 'ein daten: satz.jsonl', path: '/w/x', bytes: 1 },
    ]),
  columns: (name) => Promise.resolve(name === 'data/chat.jsonl' ? ['question', 'réponse'] : []),
  targetModules: (name) => Promise.resolve(name === './models/phi' ? ['qkv_proj', 'o_proj'] : []),
  checkpoints: (dir) =>
    Promise.resolve([
      {
        name: `${dir}/r/checkpoints/step-000100`,
        path: '/w',
        step: 100,
        loss: 1.5,
        run: 'r',
        runDirectory: '/w/r',
        totalSteps: 200,
        resumable: true,
        createdAt: '',
      },
    ]),
  devices: () =>
    Promise.resolve([
      { id: 'cuda:1', label: 'A100', totalBytes: 2 ** 36 },
      { id: 'cpu', label: '8 cores', totalBytes: 2 ** 34 },
    ]),
})

describe('recipe completion: keys', () => {
  it('offers every key of every section, in the order of the schema, with type, default and one line', async () => {
    for (const section of sectionNames) {
      const offered = (await items(`${section}:\n  │`)).filter(({ kind }) => kind === 10)
      assert.deepEqual(
        offered.map(({ label }) => label),
        recipeFields.filter((field) => field.section === section).map(({ key }) => key),
      )
      assert.deepEqual(
        [...offered].sort((a, b) => (a.sortText! < b.sortText! ? -1 : 1)),
        offered,
      )
      for (const { detail, documentation } of offered) {
        assert.match(detail!, /^(?:boolean|whole number|number|text|choice|list|mapping) · (?:required|default .+?) · \S/)
        assert.ok((documentation as { value: string }).value.length > 10)
      }
    }
  })

  it('writes each key so that the recipe is still read', async () => {
    for (const field of recipeFields) {
      const start =
        field.section === 'model'
          ? 'model:\n  │'
          : field.section === 'data'
            ? 'model: a/b\ndata:\n  │'
            : `model: a/b\ndata:\n  dataset: c/d\n${field.section}:\n  │`
      const text = await take(start, field.key)
      const codes = diagnoseSchema(new SourceText(text), 'finetune.yaml').problems.filter(({ code }) =>
        ['syntax', 'unknown_key', 'wrong_section', 'type', 'range'].includes(code),
      )
      assert.deepEqual(
        codes.map(({ message }) => message),
        [],
        text,
      )
    }
  })

  it('leaves out keys that are there, also under another name', async () => {
    const offered = await labels('lora:\n  rank: 8\n  lora_alpha: 16\n  │')
    assert.ok(!offered.includes('lora_r') && !offered.includes('lora_alpha') && offered.includes('lora_dropout'))
  })

  it('finds a key by another name of it', async () => {
    assert.match((await items('lora:\n  │')).find(({ label }) => label === 'lora_r')!.filterText!, /\brank\b/)
  })

  it('replaces the word under the cursor and keeps the value behind it', async () => {
    assert.equal(await take('training:\n  learn│x: 2e-4\n', 'learning_rate'), 'training:\n  learning_rate: 2e-4\n')
    assert.equal(await take('training:\n  batch│\n  max_steps: 3', 'batch_size'), 'training:\n  batch_size: 2\n  max_steps: 3')
  })

  it('offers sections at the left edge, each once', async () => {
    const offered = await labels('version: 1\nmodel: x\ndata:\n  dataset: y\n│\nlora:\n  lora_r: 8\n')
    assert.deepEqual(offered, ['training', 'logging', 'save', 'hub', 'inference'])
    assert.equal(await take('model: x\ntra│', 'training'), 'model: x\ntraining:\n  ')
  })

  it('offers whole recipes in an empty file, and each of them is right', async () => {
    const offered = await labels('│')
    for (const snippet of wholeRecipes) {
      assert.ok(offered.includes(snippet.label))
      const { recipe, problems } = diagnoseSchema(new SourceText(await take('│', snippet.label)), 'finetune.yaml')
      assert.ok(recipe !== null, problems.map(({ message }) => message).join('\n'))
    }
    assert.ok((await labels('# a comment\n\n│\n')).includes('recipe: LoRA'))
  })

  it('offers parts of sections that fit, and each of them is right', async () => {
    for (const [section, snippets] of Object.entries(sectionSnippets)) {
      for (const { label } of snippets) {
        const text = (await take(`${section}:\n  │`, label)).replace(/\n(?=\w)/g, '\n  ')
        const bad = diagnoseSchema(new SourceText(text), 'finetune.yaml').problems.filter(
          ({ code }) => code === 'unknown_key' || code === 'syntax' || code === 'value',
        )
        assert.deepEqual(bad, [], text)
      }
    }
    assert.ok(!(await labels('training:\n  save_steps: 10\n  │')).includes('checkpoints'))
  })

  it('works in a document that does not parse', async () => {
    for (const before of [
      'model: "half\n',
      'model: [\n',
      'data: {dataset: \n',
      'lora:\n\tlora_r: 8\n',
      'model: x\n  y: z\n',
      'foo bar\n',
      '{{{\n]\n',
      ': :\n',
    ]) {
      const offered = await labels(`${before}training:\n  batch_size: 2\n  max_│\n`)
      if (!before.startsWith('{')) assert.ok(offered.includes('max_steps'), JSON.stringify(before))
    }
    assert.ok((await labels('training:\n\tmax_│')).includes('max_steps'))
  })

  it('works with CRLF, a byte order mark and characters of two units', async () => {
    assert.equal(
      await take('# 🦥🦥\r\nmodel: "模型🦥"\r\ntraining:\r\n  pack│\r\n', 'packing'),
      '# 🦥🦥\r\nmodel: "模型🦥"\r\ntraining:\r\n  packing: \r\n',
    )
    assert.ok((await labels('\ufeff│')).includes('model'))
    assert.ok((await labels('\ufefftraining:\r\n  │')).includes('packing'))
  })

  it('works between brackets', async () => {
    assert.ok((await labels('lora: { lora_r: 8, │ }')).includes('lora_alpha'))
    assert.ok(!(await labels('lora: { lora_r: 8, │ }')).includes('lora_r'))
    assert.ok((await labels('{ "model": "x", "data": { │')).includes('dataset'))
    assert.ok((await labels('lora: { bias: │ }')).includes('lora_only'))
    assert.ok((await labels('training: {\n  packing: true,\n  optim: │')).includes('adamw_torch'))
  })

  it('keeps silent in comments, in text blocks and under unknown keys', async () => {
    for (const marked of [
      '# │',
      'training:\n  # │',
      'data:\n  chat_template: |\n    {{ │ }}\n',
      'foo:\n  │',
      'training:\n  max_steps: 3 # │',
      'training:\n  unknown: │',
    ]) {
      assert.deepEqual(await labels(marked), [], marked)
    }
  })
})

describe('recipe completion: values', () => {
  it('offers true and false, closed sets with docs, defaults and examples', async () => {
    for (const field of recipeFields) {
      const offered = await items(`${field.section}:\n  ${field.key}: │`)
      if (field.meta.kind === 'boolean')
        assert.deepEqual(
          offered.map(({ label }) => label),
          ['true', 'false'],
        )
      for (const value of Object.keys(field.meta.values ?? {})) {
        assert.ok(offered.find(({ label }) => label === value)?.documentation, `${field.path}: ${value}`)
      }
      for (const value of field.meta.examples ?? []) {
        const text = Array.isArray(value) ? yamlValue(value) : String(value)
        assert.ok(
          offered.some(({ label }) => label === text || Number(label) === value) || field.path === 'lora.target_modules',
          `${field.path}: ${text}`,
        )
      }
    }
    assert.deepEqual(await labels('version: │'), ['1'])
  })

  it('puts the missing space behind a colon', async () => {
    assert.equal(await take('training:\n  packing:│', 'true'), 'training:\n  packing: true')
    assert.equal(await take('training:\n  packing: tr│ue # yes', 'false'), 'training:\n  packing: false # yes')
  })

  it('offers what was found: models, data, columns, layers, checkpoints, devices', async () => {
    assert.deepEqual(await labels('model: │', found), ['./models/tiny', './outputs/a'])
    assert.deepEqual(await labels('model:\n  name: │', found), ['./models/tiny', './outputs/a'])
    assert.deepEqual(await labels('data:\n  local_dataset: │', found), ['data/chat.jsonl', 'ein daten: satz.jsonl'])
    assert.deepEqual(await labels('data:\n  local_dataset: data/chat.jsonl\n  text_column: │', found), ['question', 'réponse'])
    assert.deepEqual(await labels('data:\n  text_column: │\n  local_dataset:\n    - data/chat.jsonl\n', found), [
      'question',
      'réponse',
    ])
    const targets = await labels('model: ./models/phi\nlora:\n  target_modules: │', found)
    assert.ok(targets.includes('qkv_proj') && !targets.includes('q_proj') && targets.includes('[qkv_proj, o_proj]'))
    assert.deepEqual(await labels('training:\n  output_dir: out\n  resume_from: │', found), [
      'latest',
      'out/r/checkpoints/step-000100',
    ])
    const devices = await items('training:\n  device: │', found)
    assert.match(devices.find(({ label }) => label === 'cpu')!.detail!, /8 cores, 16.0 GB/)
    assert.match(devices.find(({ label }) => label === 'cuda:1')!.detail!, /A100, 64.0 GB/)
    assert.deepEqual(await labels('lora:\n  init_adapter: │', found), ['./outputs/a'])
  })

  it('offers items of lists once, with their dash', async () => {
    const marked = 'model: ./models/phi\nlora:\n  target_modules:\n    - qkv_proj\n    - │\n'
    assert.ok(!(await labels(marked, found)).includes('qkv_proj'))
    assert.equal(
      await take('model: ./models/phi\nlora:\n  target_modules:\n    │\n', 'o_proj', found),
      'model: ./models/phi\nlora:\n  target_modules:\n    - o_proj\n',
    )
    assert.equal(await take('lora:\n  target_modules: [q_proj, │]\n', 'k_proj'), 'lora:\n  target_modules: [q_proj, k_proj]\n')
    assert.equal(
      await take('data:\n  local_dataset:\n    - │', 'data/chat.jsonl', found),
      'data:\n  local_dataset:\n    - data/chat.jsonl',
    )
    assert.equal(await take('save:\n  method: [lora, │]', 'merged_16bit'), 'save:\n  method: [lora, merged_16bit]')
  })

  it('puts quotes where a value needs them, and none inside quotes', async () => {
    assert.equal(await take('data:\n  dataset: │', 'ein daten: satz.jsonl', found), "data:\n  dataset: 'ein daten: satz.jsonl'")
    assert.equal(await take('data:\n  dataset: "da│"', 'data/chat.jsonl', found), 'data:\n  dataset: "data/chat.jsonl"')
    assert.equal(await take("data:\n  dataset: '│", 'data/chat.jsonl', found), "data:\n  dataset: 'data/chat.jsonl")
  })
})

describe('recipe completion: speed', () => {
  it('takes at most 20 ms on a recipe of 200 lines, anywhere', async () => {
    const lines = ['version: 1', 'model: ./models/tiny']
    for (const section of sectionNames.slice(1)) {
      lines.push(`${section}:`)
      for (const { key, section: own } of recipeFields)
        if (own === section && key.length % 2 === 0) lines.push(`  ${key}: 1  # why`)
      lines.push('  ')
    }
    while (lines.length < 200) lines.splice(4, 0, `  # line ${lines.length}`)
    const source = new SourceText(lines.join('\n'))
    await complete(source, { line: 5, character: 2 }, found)
    let slowest = 0
    for (let line = 0; line < source.lineCount; line++) {
      const times = []
      for (let round = 0; round < 3; round++) {
        times.push(await processorTime(() => complete(source, { line, character: source.line(line).length }, found)))
      }
      // The best of three: what the first one compiles, and the collection of garbage, is no slowness of the service.
      slowest = Math.max(slowest, Math.min(...times))
    }
    assert.ok(slowest <= 20, `${slowest} ms`)
  })
})
