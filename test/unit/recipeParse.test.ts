import assert from 'node:assert/strict'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { formatRecipe } from '../../engine/recipe/formatRecipe.ts'
import { loadRecipe } from '../../engine/recipe/loadRecipe.ts'
import { describeIssue, diagnoseRecipe, parseRecipe, readRecipe } from '../../engine/recipe/parseRecipe.ts'
import { resolveRecipePaths } from '../../engine/recipe/recipePaths.ts'

const fixtures = path.join(import.meta.dirname, '../fixtures/recipes')
const fixture = (name: string): string => path.join(fixtures, name)
const good = 'model: some/model\ndata:\n  dataset: some/data\n'

function problems(source: string | Uint8Array, file = 'finetune.yaml'): string[] {
  const { recipe, issues } = diagnoseRecipe(source, file)
  const errors = issues.filter((issue) => issue.severity === 'error').map((issue) => describeIssue(issue, file))
  assert.equal(recipe === null, errors.length > 0)
  return errors
}

function temporary(files: Readonly<Record<string, string>>): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'unsloth-recipe-'))
  for (const [name, content] of Object.entries(files)) fs.writeFileSync(path.join(folder, name), content)
  return folder
}

describe('recipe files', () => {
  it('reads every key of unsloth train unchanged', () => {
    const { recipe, warnings } = readRecipe(fixture('unsloth-train.yaml'))
    assert.deepEqual(warnings, [])
    assert.equal(recipe.model.name, 'unsloth/Qwen2.5-0.5B')
    assert.equal(recipe.data.dataset, 'yahma/alpaca-cleaned')
    const { training, lora, logging } = recipe
    assert.deepEqual(
      [
        training.max_seq_length,
        training.num_epochs,
        training.learning_rate,
        training.batch_size,
        training.gradient_accumulation_steps,
      ],
      [1024, 2, 1e-4, 3, 5],
    )
    assert.deepEqual(
      [training.warmup_steps, training.save_steps, training.weight_decay, training.random_seed],
      [7, 11, 0.001, 42],
    )
    assert.deepEqual([training.packing, training.train_on_completions, training.gradient_checkpointing], [true, true, 'offload'])
    assert.deepEqual([lora.lora_r, lora.lora_alpha, lora.lora_dropout, lora.use_rslora], [32, 24, 0.05, true])
    assert.deepEqual(lora.target_modules, ['q_proj', 'k_proj', 'v_proj', 'o_proj'])
    assert.deepEqual([logging.wandb_project, logging.tensorboard_dir], ['my-project', 'boards'])
  })

  it("reads Studio's files", () => {
    const { recipe, warnings } = readRecipe(fixture('studio.yaml'))
    assert.deepEqual(warnings, [])
    assert.deepEqual(recipe.data.local_dataset, ['train.jsonl', 'more.jsonl'])
    assert.deepEqual([recipe.training.max_steps, recipe.training.warmup_steps, recipe.training.warmup_ratio], [30, 0, 0.1])
    assert.deepEqual([recipe.lora.target_modules, recipe.logging.logging_steps], [['all-linear'], 10])
    assert.equal(recipe.inference.top_k, 20)
  })

  it('reads JSON with tabs, and keeps texts as they were written', () => {
    const { recipe, warnings } = readRecipe(fixture('full.json'))
    assert.deepEqual(warnings, [])
    assert.deepEqual(
      [recipe.training.training_type, recipe.training.learning_rate, recipe.training.resume_from],
      ['full', 2e-5, 'latest'],
    )
    assert.deepEqual(recipe.data.local_dataset, ['a,b.jsonl'])
    assert.equal(recipe.data.chat_template, '{{ messages }}\n')
    assert.equal(recipe.model.revision, '1e10')
    assert.equal(parseRecipe(`model: {name: x, revision: 012e3}\ndata: {dataset: x}`, 'r.yaml').recipe.model.revision, '012e3')
  })

  it('lists all problems with line and column', () => {
    const source =
      'model: x\ndata:\n  dataset: a\n' + 'training:\n  batch_size: two\n  seed: 1\n  lerning_rate: 1e-4\nlora:\n  lora_r: 0\n'
    const expected = [
      'finetune.yaml:5:15: training.batch_size must be a whole number from 1 to 4096; "two" is not',
      'finetune.yaml:7:3: training.lerning_rate is not a key of a recipe; did you mean learning_rate?',
      'finetune.yaml:9:11: lora.lora_r must be a whole number from 1 to 16384; 0 is not',
    ]
    assert.deepEqual(problems(source), expected)
    assert.deepEqual(problems(source.replaceAll('\n', '\r\n')), expected)
    assert.deepEqual(problems(`\ufeff${source}`), expected)
    assert.deepEqual(problems(new TextEncoder().encode(`\ufeff${source}`)), expected)
    assert.throws(
      () => parseRecipe(source, 'finetune.yaml'),
      (error) => UnslothError.is(error, 'RECIPE') && error.message === expected.join('\n') && error.hint !== undefined,
    )
  })

  it('reads 2e-4, quoted or not, as a number', () => {
    for (const text of ['2e-4', '"2e-4"', "'2E-4'", '.0002', '+2e-4', '0.0002']) {
      assert.equal(parseRecipe(`${good}training: {learning_rate: ${text}}`, 'r').recipe.training.learning_rate, 2e-4, text)
    }
    assert.deepEqual(problems(`${good}training: {learning_rate: 2e-4x}`), [
      'finetune.yaml:4:27: training.learning_rate must be a number above 0 and below 1; "2e-4x" is not',
    ])
  })

  it('points at a list entry, an alias and a value of the short form', () => {
    assert.match(
      problems(`${good}lora:\n  target_modules:\n    - q_proj\n    - 'a b'\n`)[0]!,
      /^finetune\.yaml:7:7: lora\.target_modules\[1\] must be/,
    )
    assert.match(problems(`${good}training:\n  lr: 5\n`)[0]!, /^finetune\.yaml:5:7: training\.lr must be a number/)
    assert.match(problems('model: ""\ndata: {dataset: a}')[0]!, /^finetune\.yaml:1:8: model must be text/)
  })

  it('refuses keys written twice', () => {
    assert.deepEqual(problems(`${good}training:\n  seed: 1\n  seed: 1\n`), [
      'finetune.yaml:6:3: training.seed is written twice; keep one',
    ])
    assert.match(
      problems(`{"model": "x", "model": "y", "data": {"dataset": "z"}}`, 'a.json')[0]!,
      /^a\.json:1:16: model is written twice/,
    )
  })

  it('explains broken YAML', () => {
    assert.match(problems(`${good}training:\n\tlr: 1\n`)[0]!, /^finetune\.yaml:5:1: a tab is not allowed as indentation/)
    assert.match(problems('model: x\n---\nmodel: y\n')[0]!, /^finetune\.yaml:2:1: a recipe is one document/)
    assert.match(problems('model: [x\n')[0]!, /^finetune\.yaml:\d:\d+: this is not valid YAML/)
    assert.match(problems('model: !!python/object x\n')[0]!, /Unresolved tag/)
    assert.match(problems('? [a]\n: 1\n')[0]!, /a key must be a plain name/)
    assert.match(problems('')[0]!, /the recipe is empty/)
    assert.match(problems('# nothing\n')[0]!, /the recipe is empty/)
    assert.match(problems('- a\n')[0]!, /a recipe is a list of sections/)
    assert.match(problems('just text')[0]!, /a recipe is a list of sections/)
  })

  it('knows anchors and merges, within bounds', () => {
    const { recipe } = parseRecipe(
      'model: &m x/y\ndata: {dataset: *m}\ntraining:\n  <<: {batch_size: 4, seed: 1}\n  seed: 3\n',
      'r',
    )
    assert.deepEqual([recipe.data.dataset, recipe.training.batch_size, recipe.training.random_seed], ['x/y', 4, 3])
    const bomb = [
      'a: &a [1,1,1,1,1,1,1,1,1]',
      ...Array.from({ length: 8 }, (_, i) => {
        const [name, last] = [String.fromCharCode(98 + i), String.fromCharCode(97 + i)]
        return `${name}: &${name} [${Array(9).fill(`*${last}`).join(',')}]`
      }),
    ].join('\n')
    assert.match(problems(bomb)[0]!, /at most \d+ (?:aliases|values)/)
    assert.match(problems('a: &a [*a]')[0]!, /nested more than|aliases/)
  })

  it('refuses nesting, size and encodings before they cost anything', () => {
    for (const part of ['- ', '[', '{a: ', '? ', 'a:\n - ']) assert.ok(problems(part.repeat(20_000)).length > 0)
    assert.match(problems('- '.repeat(50_000))[0]!, /nested more than/)
    assert.match(problems('#'.repeat(300_000))[0]!, /a recipe has at most/)
    assert.match(problems(Buffer.from('model: x\nname: \xff\n', 'latin1'))[0]!, /^finetune\.yaml:2:7: this is not UTF-8/)
    assert.match(problems(Buffer.from('\ufeffmodel: x', 'utf16le'))[0]!, /UTF-16/)
    assert.match(problems('model: x\n\0')[0]!, /^finetune\.yaml:2:1: this is not a text file/)
  })

  it('drops secrets and points at them', () => {
    const source = `${good}logging:\n  hf_token: hf_secret\n`
    const { recipe, warnings } = parseRecipe(source, 'r.yaml')
    assert.match(describeIssue(warnings[0]!, 'r.yaml'), /^r\.yaml:5:3: logging\.hf_token is a secret/)
    assert.ok(!formatRecipe(recipe).includes('hf_secret'))
  })

  it('says what is wrong with a file that cannot be read', () => {
    const folder = temporary({ 'big.yaml': 'x'.repeat(300_000) })
    assert.throws(
      () => readRecipe(path.join(folder, 'none.yaml')),
      (error) => UnslothError.is(error, 'FILE_NOT_FOUND'),
    )
    assert.throws(
      () => readRecipe(folder),
      (error) => UnslothError.is(error, 'FILE_FORMAT') && error.message.includes('folder'),
    )
    assert.throws(
      () => readRecipe(path.join(folder, 'big.yaml')),
      (error) => UnslothError.is(error, 'RECIPE') && error.message.includes('300000 bytes'),
    )
    fs.rmSync(folder, { recursive: true })
  })
})

describe('formatRecipe', () => {
  it('is read back as the same recipe', () => {
    for (const name of fs.readdirSync(fixtures)) {
      const { recipe } = readRecipe(fixture(name))
      const again = parseRecipe(formatRecipe(recipe), 'frozen.yaml')
      assert.deepEqual(again.recipe, recipe, name)
      assert.equal(formatRecipe(again.recipe), formatRecipe(recipe))
    }
  })

  it('keeps texts that look like something else', () => {
    for (const name of [
      'true',
      '1e5',
      '0123',
      'null x',
      "it's",
      'a: b',
      '# no',
      'ümlaut/模型',
      '- x',
      '~/models',
      '<<',
      '2001-01-01',
    ]) {
      const { recipe } = parseRecipe(
        JSON.stringify({ model: { name, revision: name }, data: { local_dataset: [name], chat_template: `${name}\n\n ` } }),
        'r.json',
      )
      assert.deepEqual(parseRecipe(formatRecipe(recipe), 'r.yaml').recipe, recipe, name)
    }
  })
})

describe('recipe paths', () => {
  it('are relative to the recipe; ids stay ids unless there is such a folder', () => {
    const source =
      'model: ./base\n' +
      'data: {local_dataset: [d.jsonl, /abs/e.jsonl], eval_dataset: x/y.jsonl, chat_template: t.jinja}\n' +
      'training: {output_dir: out, resume_from: latest}\nlora: {init_adapter: adapter}\nsave: {path: ~/saved}\n'
    const recipe = resolveRecipePaths(parseRecipe(source, 'r').recipe, '/home/ann')
    assert.equal(recipe.model.name, '/home/ann/base')
    assert.deepEqual(recipe.data.local_dataset, ['/home/ann/d.jsonl', '/abs/e.jsonl'])
    assert.deepEqual(recipe.data.eval_dataset, ['/home/ann/x/y.jsonl'])
    assert.deepEqual([recipe.training.output_dir, recipe.training.resume_from], ['/home/ann/out', 'latest'])
    assert.deepEqual([recipe.lora.init_adapter, recipe.data.chat_template], ['/home/ann/adapter', '/home/ann/t.jinja'])
    assert.equal(recipe.save.path, path.join(os.homedir(), 'saved'))

    const folder = temporary({})
    const hub = parseRecipe('model: org/name\ndata: {dataset: org/data, chat_template: "{{ x }}"}', 'r').recipe
    assert.deepEqual(resolveRecipePaths(hub, folder).model.name, 'org/name')
    assert.equal(resolveRecipePaths(hub, folder).data.chat_template, '{{ x }}')
    fs.mkdirSync(path.join(folder, 'org/name'), { recursive: true })
    assert.equal(resolveRecipePaths(hub, folder).model.name, path.join(folder, 'org/name'))
    assert.equal(resolveRecipePaths(hub, folder).data.dataset, 'org/data')
    fs.rmSync(folder, { recursive: true })
  })

  it('come from the current folder when they are flags', () => {
    const folder = temporary({ 'finetune.yaml': `${good.replace('dataset', 'local_dataset')}training: {output_dir: out}\n` })
    const overrides = [{ path: 'data.local_dataset', value: ['mine.jsonl'], flag: '--local_dataset' }]
    const loaded = loadRecipe({ file: null, overrides, cwd: folder })
    assert.equal(loaded.file, path.join(folder, 'finetune.yaml'))
    assert.deepEqual(loaded.recipe.data.local_dataset, [path.join(folder, 'mine.jsonl')])
    assert.equal(loaded.recipe.training.output_dir, path.join(folder, 'out'))
    const elsewhere = loadRecipe({ file: path.join(folder, 'finetune.yaml'), overrides, cwd: '/home' })
    assert.deepEqual(elsewhere.recipe.data.local_dataset, ['/home/mine.jsonl'])
    assert.equal(elsewhere.recipe.training.output_dir, path.join(folder, 'out'))
    fs.rmSync(folder, { recursive: true })
  })

  it('asks for a recipe when there is none', () => {
    const folder = temporary({})
    assert.throws(
      () => loadRecipe({ file: null, overrides: [], cwd: folder }),
      (error) => UnslothError.is(error, 'USAGE'),
    )
    const alone = loadRecipe({
      file: null,
      cwd: folder,
      overrides: [
        { path: 'model.name', value: './m', flag: '--model' },
        { path: 'data.dataset', value: 'd', flag: '--dataset' },
      ],
    })
    assert.deepEqual([alone.file, alone.recipe.model.name], [null, path.join(folder, 'm')])
    fs.rmSync(folder, { recursive: true })
  })
})
