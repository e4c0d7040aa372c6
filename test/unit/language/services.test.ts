import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { recipeFields, sectionNames, type Recipe } from '#shared/recipe.ts'
import { parseDocument } from '../../../engine/recipe/recipeDocument.ts'
import { diagnoseSchema } from '../../../src/language/diagnostics.ts'
import { formatEdits, formatRecipeText } from '../../../src/language/format.ts'
import { inlayHints } from '../../../src/language/hints.ts'
import { hover } from '../../../src/language/hover.ts'
import { codeLenses } from '../../../src/language/lenses.ts'
import { Outline } from '../../../src/language/outline.ts'
import { documentSymbols, foldingRanges } from '../../../src/language/symbols.ts'
import { applyEdits, SourceText } from '../../../src/language/text.ts'
import type { FoundCheckpoint, RecipePlan, Workspace } from '../../../src/language/workspace.ts'
import { cursor, root, world } from './support.ts'

async function hovered(marked: string, workspace: Workspace = world()): Promise<string | undefined> {
  const { source, position } = cursor(marked)
  const found = await hover(source, position, workspace)
  return found === null ? undefined : (found.contents as { value: string }).value
}

const recipeOf = (text: string): Recipe => {
  const { recipe, problems } = diagnoseSchema(new SourceText(text), 'f.yaml')
  assert.ok(recipe, problems.map(({ message }) => message).join('\n'))
  return recipe
}

describe('recipe hover', () => {
  it('tells of every key what it does, its effect, range, default and availability', async () => {
    for (const { section, key, meta, path } of recipeFields) {
      const text = (await hovered(`${section}:\n  ${key.slice(0, 1)}│${key.slice(1)}: 1\n`)) ?? ''
      assert.ok(text.includes(path) && text.includes(meta.doc), path)
      if (meta.effect !== undefined) assert.ok(text.includes(meta.effect), path)
      if (meta.availability !== undefined) assert.ok(text.includes(meta.availability.note), path)
      if (typeof meta.default === 'number' && meta.defaultDoc === undefined) assert.match(text, /default: `[\d.e-]+`/, path)
      if (meta.max !== undefined) assert.match(text, /from|at most/, path)
    }
  })

  it('tells which GPU a number is', async () => {
    const here: Workspace = { ...world(), devices: () => Promise.resolve([{ id: 'cuda:1', label: 'A100', totalBytes: 2 ** 36 }]) }
    assert.equal(
      await hovered('training:\n  device: cuda│:1\n', here),
      '`cuda:1`: the GPU of this number, from 0 (A100, 64.0 GB)',
    )
    assert.equal(await hovered('training:\n  device: cuda│:7\n', here), '`cuda:7`: the GPU of this number, from 0')
  })

  it('tells of sections, other names, values, models and data', async () => {
    for (const name of sectionNames.slice(1))
      assert.match((await hovered(`${name.slice(0, 1)}│${name.slice(1)}:\n`))!, new RegExp(`\\*\\*${name}`))
    assert.match((await hovered('lora:\n  ra│nk: 8'))!, /another name of `lora_r`/)
    assert.match((await hovered('training:\n  lr_scheduler_type: co│sine'))!, /half a cosine/)
    const known = world({
      model: () =>
        Promise.resolve({
          ok: true,
          value: {
            folder: '/m',
            architecture: 'Qwen2ForCausalLM',
            layers: 24,
            hidden: 896,
            context: 32768,
            vocabulary: 151936,
            parameters: 494_032_768,
            bytes: 0,
            targetModules: ['q_proj'],
            modulePaths: new Set(),
          },
        }),
      dataset: () =>
        Promise.resolve({
          ok: true,
          value: { path: '/d', bytes: 1024, columns: ['text'], format: 'text', problem: undefined, rows: 1563, exact: true },
        }),
    })
    assert.match((await hovered('model: Qw│en', known))!, /494M[\s\S]*32,768 tokens/)
    assert.match((await hovered('data:\n  local_dataset:\n    - a.j│sonl', known))!, /1,563 rows[\s\S]*`text`/)
    assert.equal(await hovered('foo│: 1'), undefined)
  })
})

const plan: RecipePlan = {
  totalBytes: 0.9 * 2 ** 30,
  parts: [],
  summary: '',
  trainableParameters: 41_943_040,
  parameters: 8_030_261_248,
  secondsPerStep: undefined,
  freeBytes: 20 * 2 ** 30,
  deviceBytes: 24 * 2 ** 30,
}
const checkpoint = (step: number, resumable: boolean, createdAt: string): FoundCheckpoint => ({
  name: '',
  path: `/r/c/step-${step}`,
  step,
  loss: 1,
  run: 'r',
  runDirectory: '/r',
  totalSteps: 2000,
  resumable,
  createdAt,
})
const full = world({
  plan: () => Promise.resolve({ ok: true, value: plan }),
  tokens: () =>
    Promise.resolve({ ok: true, value: { samples: 500, mean: 350, p50: 300, p99: 1812, longest: 2100, whole: false } }),
  dataset: () =>
    Promise.resolve({
      ok: true,
      value: { path: '/d', bytes: 1, columns: ['text'], format: 'text', problem: undefined, rows: 25_000, exact: true },
    }),
  checkpoints: () =>
    Promise.resolve([
      checkpoint(1200, true, '2026-01-02'),
      checkpoint(1000, true, '2026-01-02'),
      checkpoint(9000, false, '2026-02-02'),
    ]),
})
const text =
  'model: a/b\ndata:\n  local_dataset: t.jsonl\ntraining:\n  batch_size: 2\n  gradient_accumulation_steps: 8\n  num_epochs: 1\n  max_seq_length: 2048\nlora:\n  lora_r: 16\n'

describe('recipe lenses and hints', () => {
  it('shows what can be done, the memory and the newest checkpoint', async () => {
    const lenses = await codeLenses('file:///f.yaml', recipeOf(text), full)
    assert.deepEqual(
      lenses.map(({ command }) => [command!.title, command!.command]),
      [
        ['▶ Fine-tune', 'unsloth.fineTune'],
        ['Dry run', 'unsloth.dryRun'],
        ['Preview data', 'unsloth.previewData'],
        ['0.9 of 24 GB', 'unsloth.showMemoryPlan'],
        ['Resume step 1,200', 'unsloth.resumeRun'],
      ],
    )
    assert.deepEqual(lenses[4]!.command!.arguments, ['file:///f.yaml', { run: '/r', checkpoint: '/r/c/step-1200', step: 1200 }])
    assert.ok(lenses.every(({ range }) => range.start.line === 0))
  })

  it('estimates the time where the speed was measured', async () => {
    const measured = { ...full, plan: () => Promise.resolve({ ok: true as const, value: { ...plan, secondsPerStep: 1.6 } }) }
    const lenses = await codeLenses('file:///f.yaml', recipeOf(text), measured)
    assert.equal(lenses[4]!.command!.title, '~42 m')
    const hints = await inlayHints(new Outline(new SourceText(text)), recipeOf(text), measured)
    assert.ok(hints.some(({ label }) => label === '1,563 steps, ~42 m'))
  })

  it('keeps the first three while the recipe has errors', async () => {
    assert.equal((await codeLenses('file:///f.yaml', null, full)).length, 3)
  })

  it('tells the effective batch, steps, trained parameters and lengths of the data', async () => {
    const outline = new Outline(new SourceText(text))
    const hints = await inlayHints(outline, recipeOf(text), full)
    assert.deepEqual(
      hints.map(({ label, position }) => [position.line, label]),
      [
        [4, 'effective 16'],
        [6, '1,563 steps'],
        [7, 'p99 of data 1,812'],
        [9, '41.9M trainable, 0.52 %'],
      ],
    )
    assert.equal(hints[0]!.position.character, '  batch_size: 2'.length)
    const some = await inlayHints(outline, recipeOf(text), full, {
      start: { line: 6, character: 0 },
      end: { line: 7, character: 0 },
    })
    assert.equal(some.length, 2)
    const steps = text.replace('num_epochs: 1', 'max_steps: 3126')
    assert.ok(
      (await inlayHints(new Outline(new SourceText(steps)), recipeOf(steps), full)).some(({ label }) => label === '2.00 epochs'),
    )
  })
})

describe('recipe symbols and folding', () => {
  it('lists sections with their keys', () => {
    const symbols = documentSymbols(new SourceText(text))
    assert.deepEqual(
      symbols.map(({ name, children }) => [name, children?.map((child) => `${child.name}=${child.detail}`)]),
      [
        ['model', undefined],
        ['data', ['local_dataset=t.jsonl']],
        ['training', ['batch_size=2', 'gradient_accumulation_steps=8', 'num_epochs=1', 'max_seq_length=2048']],
        ['lora', ['lora_r=16']],
      ],
    )
  })

  it('keeps every name inside the range of its symbol and its parent', () => {
    for (const sample of [
      text,
      '{"model": "x", "data": {"dataset": "y"}}',
      'data: {dataset: y,\n  shuffle: true}\nlora:\n  target_modules:\n    - a\n',
    ]) {
      const before = (a: { line: number; character: number }, b: { line: number; character: number }): boolean =>
        a.line < b.line || (a.line === b.line && a.character <= b.character)
      const check = (symbols: ReturnType<typeof documentSymbols>): number =>
        symbols.reduce((sum, { range, selectionRange, children }) => {
          assert.ok(before(range.start, selectionRange.start) && before(selectionRange.end, range.end))
          for (const child of children ?? [])
            assert.ok(before(range.start, child.range.start) && before(child.range.end, range.end), sample)
          return sum + 1 + check(children ?? [])
        }, 0)
      assert.ok(check(documentSymbols(new SourceText(sample))) >= 3, sample)
    }
  })

  it('folds sections, lists, text blocks and comments', () => {
    const source = new SourceText(
      '# a\n# b\nmodel: x\ndata:\n  chat_template: |\n    a\n    b\nlora:\n  target_modules:\n    - q\n    - v\n',
    )
    assert.deepEqual(
      foldingRanges(source).map(({ startLine, endLine, kind }) => [startLine, endLine, kind]),
      [
        [3, 6, undefined],
        [4, 6, undefined],
        [7, 10, undefined],
        [8, 10, undefined],
        [0, 1, 'comment'],
      ],
    )
  })
})

describe('recipe formatting', () => {
  it('lays out keys, lists and comments', () => {
    const messy =
      '# title\nversion:   1\nmodel: "x"   # the model  \n\n\n\ndata:\n    # files\n    local_dataset:\n    - a.jsonl   # one\n    -   b.jsonl\n    # last of data\n# about training\ntraining:\n      packing:    true\n      optim:\n       adamw_torch\nlora: { lora_r: 8,   lora_alpha: 8 }\n\n\n'
    assert.equal(
      formatRecipeText(messy),
      '# title\nversion: 1\nmodel: "x"  # the model\n\ndata:\n  # files\n  local_dataset:\n    - a.jsonl   # one\n    -   b.jsonl\n  # last of data\n# about training\ntraining:\n  packing: true\n  optim:\n   adamw_torch\nlora: { lora_r: 8,   lora_alpha: 8 }\n',
    )
  })

  it('keeps CRLF, text blocks and tabs in them, and turns tabs of indentation into spaces', () => {
    const block = 'data:\r\n    chat_template: |\r\n        {{ a }}\r\n          {{ b }}\r\n    shuffle:  true\r\n'
    assert.equal(
      formatRecipeText(block),
      'data:\r\n  chat_template: |\r\n      {{ a }}\r\n        {{ b }}\r\n  shuffle: true\r\n',
    )
    assert.equal(formatRecipeText('lora:\n\tlora_r:  8\n'), 'lora:\n  lora_r: 8\n')
  })

  it('means the same afterwards, is stable, and its edits give the same text', () => {
    const folder = join(root, 'test/fixtures/recipes')
    for (const name of readdirSync(folder).filter((file) => file.endsWith('.yaml'))) {
      const before = readFileSync(join(folder, name), 'utf8')
      for (const variant of [
        before,
        before.replaceAll('  ', '    '),
        before.replaceAll('\n', '\r\n'),
        before.replaceAll(': ', ':    '),
      ]) {
        const after = formatRecipeText(variant)
        assert.deepEqual(parseDocument(after).value, parseDocument(variant).value)
        assert.equal(formatRecipeText(after), after)
        const source = new SourceText(variant)
        assert.equal(applyEdits(source, formatEdits(source)), after)
      }
      assert.notEqual(formatRecipeText(before.replaceAll(': ', ':    ')), before.replaceAll(': ', ':    '))
    }
  })

  it('leaves alone what does not parse', () => {
    for (const broken of ['a: [\n', 'a:  b: c\n', '  a: 1\n b: 2\n', '"']) assert.equal(formatRecipeText(broken), broken)
  })
})
