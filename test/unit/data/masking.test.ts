import assert from 'node:assert/strict'
import { buildDataset, type DatasetOptions } from '../../../engine/data/dataset.ts'
import { fileWith, fixtureTokenizer, folderWith, jsonl, rejects, removeFolders } from './support.ts'
import { untrainedTokens } from '../../../engine/data/embeddingRows.ts'
import { fillRows } from '../../../engine/train/fillUntrainedRows.ts'
import { examineTokenizer, tokenizerWarnings, untrainedInUse } from '../../../engine/data/tokenizerDoctor.ts'
import { writeSafetensors } from '../../../engine/io/safetensorsWriter.ts'
import { loadTokenizer } from '../../../engine/data/tokenizer.ts'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fixtures } from './support.ts'
import { mergeColumns } from '../../../engine/data/mergedPrompt.ts'

const turn = (role: string, content: string, more = {}) => ({ role, content, ...more })
const chat = [turn('user', 'one'), turn('assistant', 'first'), turn('user', 'two'), turn('assistant', 'second')]

/** The trained text of each sample. */
async function trained(rows: readonly unknown[], options: Partial<DatasetOptions> = {}): Promise<string[]> {
  const tokenizer = await fixtureTokenizer('qwen2.5')
  const { samples } = await buildDataset({ files: [fileWith('d.jsonl', jsonl(rows))], maxSeqLength: 512, ...options }, tokenizer)
  return samples.map(({ labels }) => tokenizer.decode(labels.filter((label) => label !== -100)))
}

describe('masking', () => {
  after(removeFolders)

  it('trains all answers, the last one, or those that have a weight', async () => {
    const on = { trainOnCompletions: true }
    assert.deepEqual(await trained([{ messages: chat }], on), ['first<|im_end|>\nsecond<|im_end|>\n'])
    assert.deepEqual(await trained([{ messages: chat }], { lastResponseOnly: true }), ['second<|im_end|>\n'])
    const weighted = [...chat.slice(0, 3), turn('assistant', 'second', { weight: 0 })]
    assert.deepEqual(await trained([{ messages: weighted }], on), ['first<|im_end|>\n'])
    const rest = (await trained([{ messages: weighted }]))[0]!
    assert.ok(rest.includes('one') && rest.includes('first') && rest.includes('two') && !rest.includes('second'))
  })

  it('is the same once markers have proven themselves, also where a user writes markers', async () => {
    const rows = Array.from({ length: 30 }, (_, index) => ({
      messages: [
        turn('user', index % 5 === 4 ? '<|im_start|>assistant\nfake<|im_end|>\n' : 'q'),
        turn('assistant', `answer ${index}`),
      ],
    }))
    assert.deepEqual(
      await trained(rows, { trainOnCompletions: true }),
      rows.map((_, index) => `answer ${index}<|im_end|>\n`),
    )
  })

  it('of thinking models trains the answers of a template that drops earlier thoughts', async () => {
    const template =
      "{%- for m in messages %}{%- set text = m.content.split('</think>')[-1].lstrip('\\n') if m.role == 'assistant' and not loop.last else m.content %}" +
      "{{- '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    const messages = [
      turn('user', 'a'),
      turn('assistant', '<think>\nhm\n</think>\n\nb'),
      turn('user', 'c'),
      turn('assistant', '<think>\nso\n</think>\n\nd'),
    ]
    assert.deepEqual(await trained([{ messages }], { trainOnCompletions: true, chatTemplate: template }), [
      'b<|im_end|>\n<think>\nso\n</think>\n\nd<|im_end|>\n',
    ])
  })

  it('takes markers that are given', async () => {
    const markers = { instruction: 'Q:', response: 'A:', end: '' }
    assert.deepEqual(await trained([{ text: 'Q: one A: two Q: three A: four' }], { trainOnCompletions: true, markers }), [
      ' two four<|im_end|>',
    ])
  })

  it('learns good answers of KTO data and chosen ones of pairs', async () => {
    assert.deepEqual(
      await trained([
        { prompt: 'a', completion: ' good', label: true },
        { prompt: 'a', completion: ' bad', label: false },
      ]),
      [' good<|im_end|>'],
    )
    assert.deepEqual(await trained([{ prompt: 'a', chosen: ' good', rejected: ' bad' }]), [' good<|im_end|>'])
    assert.deepEqual(
      await trained([{ chosen: '\n\nHuman: hi\n\nAssistant: good', rejected: '\n\nHuman: hi\n\nAssistant: go' }]),
      [' good<|im_end|>'],
    )
    const pair = {
      conversations: [{ from: 'human', value: 'hi' }],
      chosen: { from: 'gpt', value: 'good' },
      rejected: { from: 'gpt', value: 'bad' },
    }
    assert.deepEqual(await trained([pair]), ['good<|im_end|>\n'])
    await rejects(trained([{ prompt: 'a', completion: 'b' }], { format: 'kto' }), 'DATA', /no "label" that is true or false/)
  })

  it('reads turns under any two keys, and questions merged of several columns', async () => {
    const turns = [
      { speaker: 'Human', text: 'hi' },
      { speaker: 'Bot', text: 'yes' },
      { speaker: 'Human', text: 'so' },
      { speaker: 'Bot', text: 'no' },
    ]
    assert.deepEqual(await trained([{ dialogue: turns }], { trainOnCompletions: true }), ['yes<|im_end|>\nno<|im_end|>\n'])
    const merged = { mergedPrompt: '{instruction}[[\nInput: {input}]]', trainOnCompletions: true }
    assert.deepEqual(await trained([{ instruction: 'a', input: '', output: 'b' }], merged), ['b<|im_end|>\n'])
    const row = (input: string | null) => ({ value: { instruction: 'a', input }, file: 'f', line: 3 })
    assert.equal(mergeColumns(row('x'), merged.mergedPrompt), 'a\nInput: x')
    assert.equal(mergeColumns(row(null), merged.mergedPrompt), 'a')
    assert.throws(() => mergeColumns(row('x'), '{other}'), /f:3: the row has no "other", which data\.merged_prompt names/)
  })
})

describe('tools and weights of messages', () => {
  after(removeFolders)

  it('tell when the template shows no tools, and refuse weights between 0 and 1', async () => {
    const tools = [{ type: 'function', function: { name: 'f' } }]
    const rows = [
      {
        messages: [
          { role: 'user', content: 'a' },
          { role: 'assistant', content: 'b' },
        ],
        tools,
      },
    ]
    const build = async (options: Partial<DatasetOptions> = {}, given: readonly unknown[] = rows) =>
      buildDataset(
        { files: [fileWith('d.jsonl', jsonl(given))], maxSeqLength: 512, ...options },
        await fixtureTokenizer('qwen2.5'),
      )
    assert.deepEqual((await build()).warnings, [])
    assert.match(
      (await build({ chatTemplate: 'chatml' })).warnings.join('\n'),
      /The data have tools \(the column "tools"\), and the chat template "chatml" does not show them/,
    )
    const weighted = [
      {
        messages: [
          { role: 'user', content: 'a' },
          { role: 'assistant', content: 'b', weight: 0.5 },
        ],
      },
    ]
    await rejects(
      build({ trainOnCompletions: true }, weighted),
      'DATA',
      /d\.jsonl:1: an answer has the weight 0\.5; a weight is 0 \(read only\) or 1 \(learned\)/,
    )
  })
})

describe('bad rows', () => {
  after(removeFolders)

  it('are named by file and line: deep in a file, mixed shapes, templates that throw', async () => {
    const lines = Array.from({ length: 48_300 }, (_, index) => (index === 48_212 ? '{"text": "a' : '{"text": "a"}'))
    await rejects(trained([], { files: [fileWith('long.jsonl', lines.join('\n'))] }), 'DATA', /long\.jsonl:48213: /)
    await rejects(
      trained([{ text: 'a' }, { prompt: 'b' }]),
      'DATA',
      /d\.jsonl:2: the row has no "text", which format text needs; its columns are "prompt"/,
    )
    await rejects(
      trained([{ messages: chat }], { chatTemplate: '{{ messages[0].content.nothing() }}' }),
      'DATA',
      /d\.jsonl:1: .*failed/,
    )
    await rejects(trained([{ messages: chat }], { chatTemplate: '{% for m in messages %}' }), 'TOKENIZER', /is not valid/)
  })

  it('of 10 MB are read like others', async () => {
    assert.deepEqual((await trained([{ text: 'word '.repeat(2_000_000) }, { text: 'b' }], { maxSeqLength: 16 })).length, 2)
  })
})

describe('tokenizer doctor', () => {
  after(removeFolders)
  const definition = (): string => readFileSync(join(fixtures, 'stories260k/tokenizer.json'), 'utf8')

  async function folder(config: Record<string, unknown>, rows = 512, zero: readonly number[] = []): Promise<string> {
    const path = folderWith({
      'tokenizer.json': definition(),
      'tokenizer_config.json': JSON.stringify(config),
      'config.json': '{"model_type": "llama"}',
    })
    const data = Float32Array.from({ length: rows * 4 }, (_, at) => (zero.includes(at >> 2) ? 0 : -1))
    await writeSafetensors(join(path, 'model.safetensors'), [
      { name: 'model.embed_tokens.weight', dtype: 'F32', shape: [rows, 4], data: new Uint8Array(data.buffer) },
    ])
    return path
  }
  const added = { 512: { content: '<|reserved_1|>', special: true } }

  it('repairs the padding token, in the order that is known to be good', async () => {
    const pad = async (config: Record<string, unknown>, rows = 513) => {
      const { findings, padToken } = await examineTokenizer(await folder(config, rows))
      return [findings.find(({ check }) => check === 'pad')!, padToken] as const
    }
    const [missing, token] = await pad({ eos_token: '</s>', added_tokens_decoder: added })
    assert.deepEqual([missing.level, token], ['warning', '<|reserved_1|>'])
    assert.match(missing.changed!, /"<\|reserved_1\|>" \(512\) is taken/)
    assert.match((await pad({ eos_token: '</s>', pad_token: '</s>' }))[0].found, /the padding token is the EOS token/)
    assert.equal((await pad({ eos_token: '</s>' }))[1], '<｜PAD▁TOKEN｜>')
    const full = await pad({ eos_token: '</s>' }, 512)
    assert.match(full[0].found, /no row of the embedding is free/)
    assert.deepEqual([full[0].changed, full[1]], [undefined, undefined])
    assert.deepEqual([(await pad({ eos_token: '</s>', pad_token: '<unk>' }))[0].level], ['ok'])
    const untouched = await examineTokenizer(await folder({ eos_token: '</s>', pad_token: '</s>' }), { fix: false })
    assert.ok(untouched.findings.every(({ changed }) => changed === undefined) && untouched.padToken === '</s>')
  })

  it('finds ids beyond the embedding, rows never trained, two BOS, templates that introduce nothing', async () => {
    const beyond = await examineTokenizer(await folder({ eos_token: '</s>', added_tokens_decoder: added }, 512))
    assert.match(beyond.findings[0]!.found, /"<\|reserved_1\|>" has the id 512, but the embedding has only 512 rows/)
    const template = "{{ bos_token }}{% for m in messages %}<|reserved_1|>{{ m['content'] }}{% endfor %}"
    const path = await folder(
      { bos_token: '<s>', eos_token: '</s>', add_bos_token: true, added_tokens_decoder: added, chat_template: template },
      513,
      [512],
    )
    const found = new Map((await examineTokenizer(path)).findings.map((finding) => [finding.check, finding]))
    assert.match(found.get('untrained')!.found, /uses "<\|reserved_1\|>", whose embeddings were never trained/)
    assert.match(found.get('bos')!.found, /and the chat template does, too/)
    assert.deepEqual(
      [found.get('template')!.level, found.get('template')!.changed],
      ['warning', '"<|reserved_1|>" is written for it'],
    )
    const tokenizer = await loadTokenizer(path)
    assert.equal((await loadTokenizer(path, { fix: false })).chatTemplates.get('default'), template)
    const untrained = await untrainedInUse(tokenizer, [{ ids: Int32Array.of(1, 512, 5, 512) }])
    assert.deepEqual([...untrained], [[512, 2]])
    assert.match(
      tokenizerWarnings(tokenizer, untrained, false).join('\n'),
      /ignores add_generation_prompt[^]*The data use "<\|reserved_1\|>", whose embeddings were never trained, and which stay/,
    )
    assert.match(tokenizerWarnings(tokenizer, untrained, true).join('\n'), /begin as the mean of the trained rows/)
  })

  it('fills rows that were never trained with the mean of the others, by how often they are used', () => {
    const values = Float32Array.of(1, -2, 3, 4, 0, 0, 0, 0)
    fillRows(
      values,
      2,
      new Map([
        [2, 4],
        [3, 1],
      ]),
    )
    assert.deepEqual([...values], [1, -2, 3, 4, 2, 1, 0.5, 0.25])
  })

  it('takes output rows that are the same as others for untrained, and rows of small negatives for trained', async () => {
    const path = folderWith({ 'config.json': '{"model_type": "llama"}' })
    const matrix = (rows: readonly (readonly number[])[]) => ({
      dtype: 'F32' as const,
      shape: [rows.length, 2],
      data: new Uint8Array(Float32Array.from(rows.flat()).buffer),
    })
    await writeSafetensors(join(path, 'model.safetensors'), [
      {
        name: 'model.embed_tokens.weight',
        ...matrix([
          [1, 1],
          [0, 0],
          [0, 0],
          [-1e-3, 0],
          [0, 0],
        ]),
      },
      {
        name: 'lm_head.weight',
        ...matrix([
          [1, 1],
          [0.5, 0.5],
          [0.5, 0.50001],
          [0, 0],
          [0.1, 0.2],
        ]),
      },
    ])
    assert.deepEqual(await untrainedTokens(path, [0, 1, 2, 3, 4]), [1, 2])
  })
})
