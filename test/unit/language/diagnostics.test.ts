import assert from 'node:assert/strict'
import type { CodeAction, TextEdit } from 'vscode-languageserver'
import { codeActions, fixAll } from '../../../src/language/quickFixes.ts'
import { diagnoseSchema, type ProblemCode, type RecipeProblem } from '../../../src/language/diagnostics.ts'
import { Outline } from '../../../src/language/outline.ts'
import { applyEdits, SourceText } from '../../../src/language/text.ts'
import { diagnoseWorld } from '../../../src/language/worldChecks.ts'
import type { DatasetFacts, ModelFacts, RecipePlan, Workspace } from '../../../src/language/workspace.ts'
import { world } from './support.ts'

const uri = 'file:///w/finetune.yaml'
const head = 'model: a/b\ndata:\n  dataset: c/d\n'

const problems = (text: string): RecipeProblem[] => diagnoseSchema(new SourceText(text), 'finetune.yaml').problems

function edits(action: CodeAction): TextEdit[] {
  return action.edit!.changes![uri]!
}

function actionsFor(text: string, problem: RecipeProblem): CodeAction[] {
  return codeActions(new SourceText(text), uri, problem.range, [problem])
}

/** Applies the preferred fix of the first problem with a code. */
function fixed(text: string, code: ProblemCode, found = problems(text), title?: string): string {
  const problem = found.find((candidate) => candidate.code === code)
  assert.ok(problem, `no ${code} in ${JSON.stringify(text)}: ${JSON.stringify(found.map(({ code: other }) => other))}`)
  const actions = actionsFor(text, problem)
  const action =
    title === undefined ? actions.find(({ isPreferred }) => isPreferred) : actions.find((candidate) => candidate.title === title)
  assert.ok(action, `no fix for ${problem.message}: ${actions.map((candidate) => candidate.title).join()}`)
  return applyEdits(new SourceText(text), edits(action))
}

/** A recipe with one problem of each kind, and what its fix makes of it. */
const cases: readonly [code: ProblemCode, text: string, after: string][] = [
  ['unknown_key', `${head}training:\n  lerning_rate: 1e-4\n`, `${head}training:\n  learning_rate: 1e-4\n`],
  ['unknown_key', `${head}trainning:\n  max_steps: 4\n`, `${head}training:\n  max_steps: 4\n`],
  ['wrong_section', `${head}  lora_r: 8\nlora:\n  lora_alpha: 8\n`, `${head}lora:\n  lora_r: 8\n  lora_alpha: 8\n`],
  ['wrong_section', `max_steps: 9\n${head}`, `${head.trimEnd()}\ntraining:\n  max_steps: 9\n`],
  [
    'wrong_section',
    `${head}target_modules:\n  - q_proj\n  - v_proj # both\n`,
    `${head}lora:\n  target_modules:\n    - q_proj\n    - v_proj # both\n`,
  ],
  ['duplicate_key', `${head}training:\n  max_steps: 4\n  max_steps: 5\n`, `${head}training:\n  max_steps: 4\n`],
  ['duplicate_key', `${head}lora:\n  r: 4\n  lora_r: 5\n`, `${head}lora:\n  r: 4\n`],
  ['secret', `${head}hub:\n  hf_token: hf_abc\n  private: true\n`, `${head}hub:\n  private: true\n`],
  ['missing', 'data:\n  dataset: c/d\n', 'model: Qwen/Qwen2.5-0.5B\ndata:\n  dataset: c/d\n'],
  ['missing', 'version: 1\ndata:\n  dataset: c/d\n', 'version: 1\nmodel: Qwen/Qwen2.5-0.5B\ndata:\n  dataset: c/d\n'],
  ['empty', `${head}training:\n  batch_size:\n`, `${head}training:\n  batch_size: 2\n`],
  ['conflict', 'model: a/b\n', 'model: a/b\ndata:\n  local_dataset: data/train.jsonl\n'],
  [
    'conflict',
    `${head}training:\n  training_type: full\n  load_in_4bit: true\n`,
    `${head}training:\n  training_type: full\n  load_in_4bit: false\n`,
  ],
  [
    'conflict',
    `${head}training:\n  max_steps: 50\n  warmup_steps: 100\n`,
    `${head}training:\n  max_steps: 50\n  warmup_steps: 5\n`,
  ],
  ['conflict', `${head}training:\n  num_epochs: 0\n`, `${head}training:\n  num_epochs: 1\n`],
  ['ineffective', `${head}training:\n  eval_steps: 10\n`, `${head}  eval_split: 0.05\ntraining:\n  eval_steps: 10\n`],
  ['unavailable', `${head}lora:\n  init_lora_weights: olora\n`, `${head}lora:\n`],
  ['value', `${head}training:\n  lr_scheduler_type: cosin\n`, `${head}training:\n  lr_scheduler_type: cosine\n`],
  ['range', `${head}training:\n  batch_size: 0\n`, `${head}training:\n  batch_size: 1\n`],
  ['syntax', `${head}training:\n\tmax_steps: 4\n`, `${head}training:\n  max_steps: 4\n`],
]

describe('recipe diagnostics and their fixes', () => {
  for (const [code, text, after] of cases) {
    it(`${code}: ${JSON.stringify(text.replace(head, '… '))}`, () => assert.equal(fixed(text, code), after))
  }

  it('leaves nothing of the problem behind, with CRLF, too', () => {
    for (const [code, text] of cases) {
      const crlf = text.replaceAll('\n', '\r\n')
      const after = fixed(crlf, code)
      assert.ok(!/[^\r]\n/.test(after), JSON.stringify(after))
      const message = problems(crlf).find((problem) => problem.code === code)!.message
      assert.ok(!problems(after).some((problem) => problem.message === message), after)
    }
  })

  it('says types with a fix to the default', () => {
    const text = `${head}training:\n  max_steps: many\n`
    assert.deepEqual(
      problems(text).map(({ code }) => code),
      ['type'],
    )
    assert.equal(fixed(text, 'type', undefined, 'Change to the default 0'), `${head}training:\n  max_steps: 0\n`)
  })

  it('points at the right characters behind CRLF, a byte order mark, wide characters and lone carriage returns', () => {
    for (const [text, line, from, to] of [
      ['model: a/b\r\ndata:\r\n  dataset: c/d\r\ntraining:\r\n  batch_size: 0\r\n', 4, 14, 15],
      ['\ufeffbad: 1\nmodel: a/b\ndata:\n  dataset: c/d\n', 0, 1, 4],
      ['# 🦥\nmodel: "🦥🦥"\ndata: {dataset: "🦥", bad: 1}\n', 2, 22, 25],
      ['# a\r# b\r\nmodel: a/b\ndata:\n  dataset: c/d\nfoo: 1\n', 5, 0, 3],
    ] as const) {
      const [problem] = problems(text)
      assert.deepEqual(problem?.range, { start: { line, character: from }, end: { line, character: to } }, JSON.stringify(text))
    }
  })

  it('moves all stray keys at once, and fixes all that has one answer', () => {
    const text = 'model: a/b\nmax_steps: 5\nlora_r: 8\nlocal_dataset: x.jsonl # here\nrank_typo: 1\n'
    const found = problems(text)
    const action = codeActions(new SourceText(text), uri, found[0]!.range, found).find(
      ({ title }) => title === 'Move all keys to their sections',
    )!
    assert.equal(
      applyEdits(new SourceText(text), edits(action)),
      'model: a/b\ndata:\n  local_dataset: x.jsonl # here\ntraining:\n  max_steps: 5\nlora:\n  lora_r: 8\nrank_typo: 1\n',
    )
    const all = fixAll(
      'model: a/b\nmax_step: 5\ntraining:\n\tlerning_rate:   1e-4\nlocal_dataset: x.jsonl\n',
      (source) => diagnoseSchema(source, 'f.yaml').problems,
      applyEdits,
    )
    assert.deepEqual(
      diagnoseSchema(new SourceText(all), 'f.yaml').problems.filter(({ code }) => code === 'syntax' || code === 'wrong_section'),
      [],
      all,
    )
    assert.match(all, /^ {2}learning_rate: 1e-4$/m)
  })

  it('takes out a key between brackets with one comma', () => {
    assert.equal(
      fixed('model: a/b\ndata: {dataset: c/d}\nhub: {private: true, token: x}\n', 'secret'),
      'model: a/b\ndata: {dataset: c/d}\nhub: {private: true}\n',
    )
    assert.equal(
      fixed('model: a/b\ndata: {dataset: c/d}\nhub: {token: x, private: true}\n', 'secret'),
      'model: a/b\ndata: {dataset: c/d}\nhub: {private: true}\n',
    )
  })

  it('rewrites numbers and names', () => {
    const rewrite = (text: string, title: string): string => {
      const source = new SourceText(text)
      const at = source.position(text.indexOf('│'))
      const clean = new SourceText(text.replace('│', ''))
      const action = codeActions(clean, uri, { start: at, end: at }, []).find((candidate) => candidate.title === title)
      assert.ok(action, title)
      return applyEdits(clean, edits(action))
    }
    assert.equal(rewrite('training:\n  learning_rate: 0.0│002\n', 'Write as 2e-4'), 'training:\n  learning_rate: 2e-4\n')
    assert.equal(rewrite('training:\n  learning_rate: 2│e-4\n', 'Write as 0.0002'), 'training:\n  learning_rate: 0.0002\n')
    assert.equal(rewrite('lora:\n  ra│nk: 8\n', 'Use the usual name lora_r'), 'lora:\n  lora_r: 8\n')
    assert.equal(
      rewrite('lora:\n  ra│nk: 8\n  alpha: 8\n', 'Use the usual names of all keys'),
      'lora:\n  lora_r: 8\n  lora_alpha: 8\n',
    )
  })
})

const model: ModelFacts = {
  folder: '/w/m',
  architecture: 'LlamaForCausalLM',
  layers: 4,
  hidden: 64,
  context: 512,
  vocabulary: 512,
  parameters: 260_032,
  bytes: 1,
  targetModules: ['q_proj', 'v_proj'],
  modulePaths: new Set(['model.layers.0.self_attn.q_proj', 'model.layers.0.self_attn.v_proj']),
}
const data: DatasetFacts = {
  path: '/w/t.jsonl',
  bytes: 10,
  columns: ['question', 'answer'],
  format: undefined,
  problem: 'no known format has these columns',
  rows: 100,
  exact: true,
}
const plan: RecipePlan = {
  totalBytes: 2 ** 35,
  parts: [
    { name: 'frozen weights', bytes: 2 ** 34 },
    { name: 'activations', bytes: 2 ** 33 },
  ],
  summary: '',
  trainableParameters: 1,
  secondsPerStep: undefined,
  parameters: 2,
  freeBytes: 2 ** 33,
  deviceBytes: 2 ** 34,
}
const around = (parts: Partial<Workspace> = {}): Workspace =>
  world({
    isPath: (name) => name.startsWith('./') || name.endsWith('.jsonl'),
    model: (name) =>
      Promise.resolve(
        name === './m'
          ? { ok: true, value: model }
          : name === './bad'
            ? { ok: false, missing: false, problem: 'config.json: architecture X is not supported yet.' }
            : { ok: false, missing: true, problem: `there is no model folder ${name}` },
      ),
    dataset: (name) =>
      Promise.resolve(
        name === 't.jsonl'
          ? { ok: true, value: { ...data, columns: ['text'], format: 'text' } }
          : name === 'qa.jsonl'
            ? { ok: true, value: data }
            : { ok: false, missing: true, problem: `there is no file ${name}` },
      ),
    datasets: () => Promise.resolve([{ name: 'train.jsonl', path: '/w/train.jsonl', bytes: 1 }]),
    models: () =>
      Promise.resolve([{ name: 'org/model', folder: '/w', kind: 'model', from: 'hub cache', architecture: 'x', bytes: 1 }]),
    ...parts,
  })

async function worldProblems(text: string, workspace = around()): Promise<RecipeProblem[]> {
  const source = new SourceText(text)
  return diagnoseWorld(new Outline(source), diagnoseSchema(source, 'f.yaml').recipe, workspace)
}

describe('recipe diagnostics: the world', () => {
  const good = 'model: ./m\ndata:\n  local_dataset: t.jsonl\n'

  it('says nothing about a recipe that fits', async () =>
    assert.deepEqual(await worldProblems(`${good}training:\n  max_seq_length: 512\n`), []))

  const expected: readonly [code: ProblemCode, severity: number, text: string, workspace?: Workspace][] = [
    ['file_missing', 1, 'model: ./none\ndata:\n  local_dataset: t.jsonl\n'],
    ['model_missing', 2, 'model: org/modle\ndata:\n  local_dataset: t.jsonl\n'],
    ['model_invalid', 1, 'model: ./bad\ndata:\n  local_dataset: t.jsonl\n'],
    ['file_missing', 1, 'model: ./m\ndata:\n  local_dataset:\n    - t.jsonl\n    - trian.jsonl\n'],
    ['file_missing', 1, `${good}training:\n  resume_from: ./gone\n`],
    ['file_missing', 1, `${good}lora:\n  init_adapter: ./gone\n`],
    ['dataset_format', 1, 'model: ./m\ndata:\n  local_dataset: qa.jsonl\n'],
    ['column_missing', 1, 'model: ./m\ndata:\n  local_dataset: qa.jsonl\n  format_type: text\n  text_column: questoin\n'],
    ['column_missing', 1, 'model: ./m\ndata:\n  local_dataset: qa.jsonl\n  format_type: alpaca\n'],
    ['target_missing', 1, `${good}lora:\n  target_modules: [q_proj, v_prj]\n`],
    [
      'device_missing',
      1,
      `${good}training:\n  device: cuda:3\n  max_seq_length: 512\n`,
      around({
        devices: () =>
          Promise.resolve([
            { id: 'cuda:0', label: 'A100' },
            { id: 'cpu', label: '8 cores' },
          ]),
      }),
    ],
    ['layer_range', 1, `${good}lora:\n  layers_to_transform: [0, 4]\n`],
    ['sequence_length', 2, `${good}training:\n  max_seq_length: 1024\n`],
    [
      'data_truncated',
      3,
      `${good}training:\n  max_seq_length: 128\n`,
      around({
        tokens: () =>
          Promise.resolve({ ok: true, value: { samples: 100, mean: 120, p50: 100, p99: 300, longest: 400, whole: true } }),
      }),
    ],
    [
      'memory',
      2,
      `${good}training:\n  max_seq_length: 512\n`,
      around({ plan: () => Promise.resolve({ ok: true, value: plan }) }),
    ],
    [
      'memory',
      2,
      `${good}training:\n  max_memory: 1 MB\n  max_seq_length: 512\n`,
      around({ plan: () => Promise.resolve({ ok: true, value: plan }) }),
    ],
  ]
  for (const [code, severity, text, workspace] of expected) {
    it(`${code}: ${JSON.stringify(text.replace(good, '… '))}`, async () => {
      const found = await worldProblems(text, workspace)
      assert.deepEqual(
        found.map((problem) => [problem.code, problem.severity]),
        [[code, severity]],
        found.map(({ message }) => message).join('\n'),
      )
    })
  }

  it('still checks files while the text has errors', async () => {
    assert.deepEqual(
      (await worldProblems('model: ./m\ndata:\n  local_dataset: gone.jsonl\nbroken: [\n')).map(({ code }) => code),
      ['file_missing'],
    )
  })

  it('has fixes: names, lengths, memory', async () => {
    const text = 'model: ./m\ndata:\n  local_dataset:\n    - t.jsonl\n    - trian.jsonl\n'
    assert.equal(fixed(text, 'file_missing', await worldProblems(text)), text.replace('trian', 'train'))
    const layers = `${good}lora:\n  target_modules: [q_proj, v_prj]\n`
    assert.equal(fixed(layers, 'target_missing', await worldProblems(layers)), layers.replace('v_prj', 'v_proj'))
    const long = `${good}training:\n  max_seq_length: 1024\n`
    assert.equal(fixed(long, 'sequence_length', await worldProblems(long)), long.replace('1024', '512'))
    const large = `${good}training:\n  max_seq_length: 512\n`
    const found = await worldProblems(large, around({ plan: () => Promise.resolve({ ok: true, value: plan }) }))
    assert.equal(fixed(large, 'memory', found, 'Halve max_seq_length to 256'), large.replace('512', '256'))
  })
})
