import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Tokenizer as NativeTokenizer } from 'tokenizers'
import { Xoshiro128 } from '../../../engine/data/random.ts'
import { StreamDecoder } from '../../../engine/data/streamDecoder.ts'
import { checkVocabulary, loadTokenizer } from '../../../engine/data/tokenizer.ts'
import { fixtures, fixtureTokenizer, folderWith, rejects, removeFolders } from './support.ts'

interface Texts {
  readonly vocabularyTests: readonly { readonly text: string; readonly qwen2: number[]; readonly llamaSpm: number[] }[]
  readonly texts: readonly string[]
}
const { vocabularyTests, texts } = JSON.parse(readFileSync(join(fixtures, 'texts.json'), 'utf8')) as Texts
const all = [...texts, ...vocabularyTests.map(({ text }) => text)]
const names = ['stories260k', 'llama', 'qwen2.5', 'mistral-v0.3'] as const

describe('tokenizer', () => {
  after(removeFolders)

  for (const name of names) {
    it(`encodes and decodes as the native engine does: ${name}`, async () => {
      const tokenizer = await fixtureTokenizer(name)
      const native = NativeTokenizer.fromFile(join(fixtures, name, 'tokenizer.json'))
      for (const text of all) {
        for (const addSpecialTokens of [false, true]) {
          const expected = (await native.encode(text, null, { addSpecialTokens })).getIds()
          assert.deepEqual([...tokenizer.encode(text, { addSpecialTokens })], expected, JSON.stringify(text))
          for (const skipSpecialTokens of [false, true])
            assert.equal(
              tokenizer.decode(expected, { skipSpecialTokens }),
              await native.decode(expected, skipSpecialTokens),
              JSON.stringify(text),
            )
        }
      }
    })

    it(`decodes any ids as the native engine does: ${name}`, async () => {
      const tokenizer = await fixtureTokenizer(name)
      const native = NativeTokenizer.fromFile(join(fixtures, name, 'tokenizer.json'))
      const known = Object.values(native.getVocab(true))
      const random = new Xoshiro128(1)
      for (let round = 0; round < 300; round++) {
        const ids = Array.from({ length: 1 + random.below(8) }, () =>
          random.below(20) === 0 ? tokenizer.vocabSize + 7 : known[random.below(known.length)]!,
        )
        assert.equal(tokenizer.decode(ids), await native.decode(ids, false), ids.join())
      }
    })
  }

  it('gives the ids that llama.cpp expects', async () => {
    const [qwen, llama] = [await fixtureTokenizer('qwen2.5'), await fixtureTokenizer('llama')]
    for (const { text, qwen2, llamaSpm } of vocabularyTests) {
      assert.deepEqual([...qwen.encode(text)], qwen2, JSON.stringify(text))
      assert.deepEqual([...llama.encode(text)], llamaSpm, JSON.stringify(text))
    }
  })

  it('knows special tokens, BOS and the ids that end a text', async () => {
    const llama = await fixtureTokenizer('llama')
    assert.deepEqual([llama.bosId, llama.eosId, llama.addsBos, [...llama.prefixIds], llama.vocabSize], [1, 2, true, [1], 32000])
    const qwen = await fixtureTokenizer('qwen2.5')
    assert.deepEqual([qwen.bosId, qwen.eosToken, qwen.addsBos, [...qwen.eosIds]], [undefined, '<|im_end|>', false, [151645]])
    assert.equal(qwen.idOf('<|im_start|>'), 151644)
    assert.equal(qwen.tokenOf(151644), '<|im_start|>')
    assert.ok(qwen.specialIds.has(151645))
    assert.ok(qwen.chatTemplates.has('default'))
  })

  it('replaces halves of surrogate pairs', async () => {
    const tokenizer = await fixtureTokenizer('stories260k')
    assert.deepEqual(tokenizer.encode('a\ud83db'), tokenizer.encode('a\ufffdb'))
    assert.equal(tokenizer.decode(tokenizer.encode('🙂')), '🙂')
  })

  it('reads tokens given as objects, lists of EOS, and templates as list or file', async () => {
    const definition = readFileSync(join(fixtures, 'stories260k/tokenizer.json'))
    const folder = folderWith({
      'tokenizer.json': definition,
      'tokenizer_config.json': JSON.stringify({
        bos_token: { content: '<s>' },
        add_bos_token: false,
        add_eos_token: true,
        chat_template: [
          { name: 'default', template: 'a' },
          { name: 'tool_use', template: 'b' },
        ],
        added_tokens_decoder: { 512: { content: '<new>', special: true } },
      }),
      'special_tokens_map.json': '\ufeff{"eos_token": {"content": "</s>"}}',
      'generation_config.json': '{"eos_token_id": [2, 5]}',
      'chat_template.jinja': 'from the file',
    })
    const tokenizer = await loadTokenizer(folder)
    assert.deepEqual([...tokenizer.encode('a', { addSpecialTokens: true })], [...tokenizer.encode('a'), 2])
    assert.equal(tokenizer.addsBos, false)
    assert.deepEqual([...tokenizer.eosIds], [2, 5])
    assert.deepEqual(
      [...tokenizer.chatTemplates],
      [
        ['default', 'from the file'],
        ['tool_use', 'b'],
      ],
    )
    assert.deepEqual([tokenizer.idOf('<new>'), tokenizer.vocabSize], [512, 513])
    assert.deepEqual([...tokenizer.encode('<new>')], [512])
    assert.throws(
      () => checkVocabulary(tokenizer, 512),
      /"<new>" has the id 512, but the embedding of the model has only 512 rows/,
    )
    checkVocabulary(tokenizer, 513)
  })

  it('takes EOS and BOS from generation_config.json when nothing else names them', async () => {
    const folder = folderWith({
      'tokenizer.json': readFileSync(join(fixtures, 'stories260k/tokenizer.json')),
      'generation_config.json': '{"eos_token_id": 2, "bos_token_id": 1}',
    })
    const tokenizer = await loadTokenizer(folder)
    assert.deepEqual([tokenizer.bosToken, tokenizer.eosToken, tokenizer.addsBos], ['<s>', '</s>', true])
  })

  it('names the file that is missing or broken', async () => {
    const good = readFileSync(join(fixtures, 'stories260k/tokenizer.json'), 'utf8')
    const load = (files: Record<string, string | Uint8Array>): Promise<unknown> => loadTokenizer(folderWith(files))
    await rejects(loadTokenizer('/nowhere/at/all'), 'TOKENIZER', /nowhere/)
    await rejects(load({}), 'TOKENIZER', /tokenizer\.json: no such file/)
    await rejects(load({ 'tokenizer.model': '' }), 'TOKENIZER', /tokenizer\.model: not a SentencePiece model/)
    await rejects(load({ 'vocab.json': '' }), 'TOKENIZER', /hint: Only "vocab.json"/)
    await rejects(
      load({ 'tokenizer.json': good.slice(0, 5000) }),
      'TOKENIZER',
      /tokenizer\.json: line \d+, column \d+: not valid JSON/,
    )
    await rejects(load({ 'tokenizer.json': Uint8Array.of(0xff, 0xfe) }), 'TOKENIZER', /tokenizer\.json: not UTF-8/)
    await rejects(load({ 'tokenizer.json': '[]' }), 'TOKENIZER', /not a JSON object/)
    await rejects(load({ 'tokenizer.json': '{}' }), 'TOKENIZER', /"model" is missing/)
    await rejects(
      load({ 'tokenizer.json': '{"model": {"type": "Magic", "vocab": {"a": 0}}}' }),
      'TOKENIZER',
      /model type "Magic" is not supported/,
      /BPE, Unigram/,
    )
    await rejects(
      load({ 'tokenizer.json': '{"model": {"type": "BPE", "vocab": {}, "merges": []}}' }),
      'TOKENIZER',
      /"model.vocab" is missing or empty/,
    )
    await rejects(
      load({ 'tokenizer.json': '{"model": {"type": "BPE", "vocab": {"a": 1e12}, "merges": []}}' }),
      'TOKENIZER',
      /"a" has no usable id/,
    )
    await rejects(load({ 'tokenizer.json': '{"model": {"type": "BPE", "vocab": {"a": 0}}}' }), 'TOKENIZER', /cannot be used/)
    await rejects(
      load({ 'tokenizer.json': '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [{"id": "x"}]}' }),
      'TOKENIZER',
      /added tokens/,
    )
    await rejects(
      load({ 'tokenizer.json': good, 'tokenizer_config.json': '{"bos_token": 3}' }),
      'TOKENIZER',
      /tokenizer_config\.json: bos_token is neither/,
    )
    await rejects(
      load({ 'tokenizer.json': good, 'tokenizer_config.json': '{"eos_token": "<end>"}' }),
      'TOKENIZER',
      /EOS token "<end>" is not in the vocabulary/,
    )
    await rejects(
      load({ 'tokenizer.json': good, 'tokenizer_config.json': '{"chat_template": 1}' }),
      'TOKENIZER',
      /"chat_template" is neither/,
    )
  })
})

describe('streaming decoder', () => {
  for (const name of names) {
    it(`gives the whole text piece by piece: ${name}`, async () => {
      const tokenizer = await fixtureTokenizer(name)
      for (const text of all) {
        const ids = tokenizer.encode(text)
        const decoder = new StreamDecoder(tokenizer, { skipSpecialTokens: false })
        const pieces = Array.from(ids, (id) => decoder.push(id))
        for (const piece of pieces) assert.ok(text.includes('\ufffd') || !piece.includes('\ufffd'), JSON.stringify(pieces))
        assert.equal(pieces.join('') + decoder.end(), tokenizer.decode(ids), JSON.stringify(text))
      }
    })
  }

  it('keeps the space before the first word after a prompt, and holds back half a character', async () => {
    const tokenizer = await fixtureTokenizer('stories260k')
    const ids = tokenizer.encode('One day 🙂')
    const decoder = new StreamDecoder(tokenizer, { prompt: ids.subarray(0, 1) })
    assert.equal(
      Array.from(ids.subarray(1), (id) => decoder.push(id)).join(''),
      tokenizer.decode(ids).slice(tokenizer.decode(ids.subarray(0, 1)).length),
    )
    const smile = new StreamDecoder(tokenizer)
    const bytes = [...ids.subarray(-4)]
    assert.deepEqual(
      bytes.map((id) => smile.push(id)),
      ['', '', '', '🙂'],
    )
    const cut = new StreamDecoder(tokenizer)
    assert.equal(cut.push(bytes[0]!), '')
    assert.equal(cut.end(), '\ufffd')
  })
})
