import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { ChatTemplate, chatTemplateFor, encodeRendered, strftime, type ChatMessage } from '../../../engine/data/chatTemplate.ts'
import { ChatRenderer, tokenSpans } from '../../../engine/data/completionSpans.ts'
import { templateMarkers } from '../../../engine/data/markers.ts'
import { loadTokenizer } from '../../../engine/data/tokenizer.ts'
import { fixtures, fixtureTokenizer, folderWith, rejects, removeFolders } from './support.ts'
import { processorTime } from '../../machineTime.ts'

const tokens = { bosToken: '<s>', eosToken: '</s>', padToken: undefined, unkToken: undefined }
const make = (source: string, now?: Date) => new ChatTemplate(source, { name: 'test', tokens, ...(now && { now }) })
const user = (content: string): ChatMessage => ({ role: 'user', content })
const assistant = (content: string): ChatMessage => ({ role: 'assistant', content })
const answersOf = (template: ChatTemplate, messages: ChatMessage[]) => {
  const { text, answers, foundBy } = new ChatRenderer(template).render(messages)
  return { foundBy, answers: answers.map(({ from, to }) => text.slice(from, to)) }
}

/** As thinking templates do it: thoughts are shown in the last answer only. */
const thinking = `{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.last %}<think>

</think>

{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}`

describe('chat template', () => {
  after(removeFolders)

  it('renders the template of Qwen2.5 as transformers does', async () => {
    const template = chatTemplateFor(await fixtureTokenizer('qwen2.5'))
    const system = '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n'
    assert.equal(
      template.render([user('Hi')], { addGenerationPrompt: true }),
      `${system}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n`,
    )
    const tools = [{ type: 'function', function: { name: 'f', description: 'é "x"', parameters: { n: 1, b: true, z: null } } }]
    const text = template.render(
      [
        { role: 'system', content: 'Be brief.' },
        user('2+2?'),
        { role: 'assistant', content: '', tool_calls: [{ type: 'function', function: { name: 'f', arguments: { x: 1 } } }] },
        { role: 'tool', content: '4' },
        assistant('4'),
      ],
      { tools },
    )
    assert.match(text, /^<\|im_start\|>system\nBe brief\.\n\n# Tools/)
    assert.ok(
      text.includes(
        '\n{"type": "function", "function": {"name": "f", "description": "é \\"x\\"", ' +
          '"parameters": {"n": 1, "b": true, "z": null}}}\n</tools>',
      ),
    )
    assert.ok(
      text.endsWith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>\n' +
          '<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n',
      ),
    )
  })

  it('renders the template of Mistral with one BOS, and passes on what it refuses', async () => {
    const tokenizer = await fixtureTokenizer('mistral-v0.3')
    const template = chatTemplateFor(tokenizer)
    const text = template.render([user('Hi'), assistant('Hello'), user('Bye')])
    assert.equal(text, '<s>[INST] Hi[/INST] Hello</s>[INST] Bye[/INST]')
    assert.equal([...encodeRendered(tokenizer, text)].filter((id) => id === tokenizer.bosId).length, 1)
    const refusal = /the chat template of \S+mistral-v0\.3 refuses these messages: After the optional .* roles must alternate/
    assert.throws(() => template.render([user('a'), user('b')]), refusal)
  })

  it('puts the BOS of the tokenizer before text of a template that has none', async () => {
    const tokenizer = await fixtureTokenizer('stories260k')
    assert.equal(encodeRendered(tokenizer, 'Once')[0], 1)
    assert.deepEqual([...encodeRendered(tokenizer, '<s>Once')].slice(0, 2), [1, tokenizer.encode('<s>Once')[1]])
  })

  it('gives templates the functions and variables that transformers gives them', () => {
    const now = new Date(2024, 6, 4, 9, 5, 7)
    assert.equal(make("{{ bos_token }}{{ strftime_now('%d %b %Y') }}{{ eos_token }}", now).render([]), '<s>04 Jul 2024</s>')
    assert.equal(
      make('{{ pad_token is defined }}{{ tools is none }}{% for i in range(1, 4) %}{{ i }}{% endfor %}').render([]),
      'FalseTrue123',
    )
    assert.equal(make('{% if enable_thinking %}yes{% endif %}').render([], { variables: { enable_thinking: true } }), 'yes')
    assert.equal(strftime(now, '%A %-d %B %y %H:%M:%S %I %p %F %%'), 'Thursday 4 July 24 09:05:07 09 AM 2024-07-04 %')
    assert.equal(make('{% generation %}a{% endgeneration %}').render([]), 'a')
  })

  it('means by its expressions what Jinja means by them', () => {
    const { variables, cases } = JSON.parse(readFileSync(join(fixtures, 'chatTemplates/semantics.json'), 'utf8')) as {
      variables: Record<string, unknown>
      cases: { template: string; text?: string; error?: string }[]
    }
    for (const { template, text } of cases) {
      const render = (): string => make(template).render([], { variables })
      if (text === undefined) assert.throws(render, UnslothError, template)
      else assert.equal(render(), text, template)
    }
  })

  it('ends a template that does not come to an end, or makes ever more text', async () => {
    const bound = (source: string) =>
      new ChatTemplate(source, { name: 'test', tokens, limits: { milliseconds: 100, characters: 1e6 } })
    const loops = bound('{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}')
    const time = await processorTime(() =>
      assert.throws(() => loops.render([]), /test failed: it ran for more than 0\.1 seconds/),
    )
    assert.ok(time < 2000, `${time} ms`)
    const doubles = bound("{% set ns = namespace(t='aa') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}")
    assert.throws(() => doubles.render([]), /test failed: it makes a text of more than 1000000 characters/)
    assert.throws(() => bound('{% for a in range(10 ** 12) %}{% endfor %}').render([]), /range\(\) of 1000000000000 numbers/)
    assert.throws(() => bound('{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}').render([]), /test failed: /)
    assert.equal(bound('{{ messages[0].content.strip() }}').render([user(`a${' '.repeat(500_000)}b`)]).length, 500_002)
  })

  it('tells what is wrong with a template', () => {
    assert.throws(() => make('{% for x in %}'), /test is not valid: /)
    assert.throws(() => make('{{ messages[0].content.foo.bar() }}').render([user('x')]), /test failed: .*/)
    assert.throws(() => make("{{ raise_exception('No!') }}").render([user('x')]), /refuses these messages: No!$/)
  })

  it('finds the template by name, text, or in the model; none is an error with a way out', async () => {
    const qwen = await fixtureTokenizer('qwen2.5')
    assert.equal(
      chatTemplateFor(qwen, { template: 'chatml' }).render([user('a'), assistant('b')]),
      '<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n',
    )
    assert.equal(chatTemplateFor(qwen, { template: '{{ messages[0].content }}' }).render([user('a')]), 'a')
    assert.throws(
      () => chatTemplateFor(qwen, { template: 'chatlm' }),
      /"chatlm": neither a Jinja template nor the name of a known one/,
    )
    const base = await fixtureTokenizer('stories260k')
    await rejects(
      Promise.resolve().then(() => chatTemplateFor(base)),
      'TOKENIZER',
      /stories260k: this model has no chat template/,
      /hint: .*chatml/,
    )
    const folder = folderWith({
      'tokenizer.json': readFileSync(join(fixtures, 'stories260k/tokenizer.json')),
      'chat_template.jinja': 'own',
    })
    assert.equal(chatTemplateFor(await loadTokenizer(folder)).render([]), 'own')
  })
})

describe('answers in a conversation', () => {
  const messages = [user('one'), assistant('first'), user('two'), assistant('second')]

  it('are found by prefixes, with the end of the turn', async () => {
    const template = chatTemplateFor(await fixtureTokenizer('qwen2.5'))
    assert.deepEqual(answersOf(template, messages), { foundBy: 'prefixes', answers: ['first<|im_end|>\n', 'second<|im_end|>\n'] })
    const llama = make(
      "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]" +
        '{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}',
    )
    assert.deepEqual(answersOf(llama, messages), { foundBy: 'prefixes', answers: [' first </s>', ' second </s>'] })
  })

  it('are found by markers when a template rewrites earlier turns', async () => {
    assert.deepEqual(answersOf(make(thinking), messages), {
      foundBy: 'markers',
      answers: ['first<|im_end|>\n', '<think>\n\n</think>\n\nsecond<|im_end|>\n'],
    })
    const mistral = chatTemplateFor(await fixtureTokenizer('mistral-v0.3'))
    assert.deepEqual(answersOf(mistral, [{ role: 'system', content: 'Be brief.' }, ...messages]), {
      foundBy: 'markers',
      answers: [' first</s>', ' second</s>'],
    })
  })

  it('are found by markers of a template that nobody knows', () => {
    const unknown = make(
      "{% for m in messages %}{% if m.role == 'user' %}<ask>{{ m.content }}</ask>{% elif loop.last %}" +
        '<reply>!{{ m.content }}</reply>{% else %}<reply>{{ m.content }}</reply>{% endif %}{% endfor %}',
    )
    assert.deepEqual(answersOf(unknown, messages), { foundBy: 'markers', answers: ['first</reply>', '!second</reply>'] })
    const plain = make(
      "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\nA:" +
        '{% else %} {{ m.content }}<end>\n{% endif %}{% endfor %}',
    )
    assert.deepEqual(templateMarkers(plain), { instruction: 'Q: ', response: '\nA: ', end: '<end>\n' })
    assert.equal(answersOf(make('{{ messages | length }}'), messages).foundBy, 'none')
  })

  it('cover whole tokens: the content and what ends it, nothing of the question', async () => {
    for (const name of ['qwen2.5', 'mistral-v0.3'] as const) {
      const tokenizer = await fixtureTokenizer(name)
      const { text, answers } = new ChatRenderer(chatTemplateFor(tokenizer)).render(messages)
      const ids = tokenizer.encode(text)
      const decoded = tokenSpans(tokenizer, text, ids, answers).map(({ from, to }) =>
        tokenizer.decode(ids.subarray(from, to)).trimStart(),
      )
      assert.deepEqual(decoded, name === 'qwen2.5' ? ['first<|im_end|>\n', 'second<|im_end|>\n'] : ['first</s>', 'second</s>'])
    }
  })

  it('take the token that reaches over the start of an answer', async () => {
    const tokenizer = await fixtureTokenizer('qwen2.5')
    const text = '<|im_start|>assistant\n\nHello'
    const from = text.indexOf('\n') + 1
    const ids = tokenizer.encode(text)
    const [span] = tokenSpans(tokenizer, text, ids, [{ from, to: text.length }])
    assert.equal(tokenizer.decode(ids.subarray(span!.from, span!.to)), '\n\nHello')
  })
})
