import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Tokenizer as NativeTokenizer } from 'tokenizers'
import { chatTemplateFor, encodeRendered } from '../../../engine/data/chatTemplate.ts'
import { loadTokenizer, type Tokenizer, type TokenizerOptions } from '../../../engine/data/tokenizer.ts'
import { examineTokenizer } from '../../../engine/data/tokenizerDoctor.ts'
import { tokenizerOptions } from '../../../engine/data/recipeData.ts'
import { diagnoseRecipe } from '../../../engine/recipe/parseRecipe.ts'
import { writeTokenizer } from '../../../engine/save/writeTokenizer.ts'
import { fixtures, folderWith, rejects, removeFolders } from './support.ts'

type Json = Record<string, unknown>
type Definition = Json & {
  added_tokens: (Json & { id: number; content: string })[]
  model: Json & { vocab: Record<string, number> }
}
const definition = (): Definition => JSON.parse(readFileSync(join(fixtures, 'stories260k/tokenizer.json'), 'utf8')) as Definition
const llama = { bos_token: '<s>', eos_token: '</s>', unk_token: '<unk>', add_bos_token: true }

function folder(
  config: Json,
  {
    tokenizer = definition(),
    model = { vocab_size: 520 },
    files = {},
  }: { tokenizer?: Json; model?: Json; files?: Record<string, string | Uint8Array> } = {},
): string {
  return folderWith({
    'tokenizer.json': JSON.stringify(tokenizer),
    'tokenizer_config.json': JSON.stringify(config),
    'config.json': JSON.stringify(model),
    ...files,
  })
}
const changes = ({ repairs }: Tokenizer): string =>
  repairs.map(({ check, found, changed }) => `${check}: ${found}; ${changed}`).join('\n')

/** What was written of a tokenizer, read again by us and by the native engine. */
async function saved(
  tokenizer: Tokenizer,
): Promise<{ again: Tokenizer; native: NativeTokenizer; config: Json; names: string[] }> {
  const to = mkdtempSync(join(tmpdir(), 'unsloth-saved-'))
  try {
    await writeTokenizer(tokenizer, to)
    const names = readdirSync(to).sort()
    const config = names.includes('tokenizer_config.json')
      ? (JSON.parse(readFileSync(join(to, 'tokenizer_config.json'), 'utf8')) as Json)
      : {}
    return {
      again: await loadTokenizer(to, { fix: false, modelFolder: tokenizer.folder }),
      native: NativeTokenizer.fromFile(join(to, 'tokenizer.json')),
      config,
      names,
    }
  } finally {
    rmSync(to, { recursive: true })
  }
}

describe('repair of tokenizers', () => {
  after(removeFolders)

  it('takes or adds a token that pads, and saves it', async () => {
    const taken = await loadTokenizer(
      folder({ ...llama, added_tokens_decoder: { 512: { content: '<|reserved_1|>', special: true } } }),
    )
    assert.deepEqual([taken.padToken, taken.padId], ['<|reserved_1|>', 512])
    assert.match(changes(taken), /^pad: there is no padding token; "<\|reserved_1\|>" \(512\) is taken$/)
    const added = await loadTokenizer(folder({ ...llama, pad_token: '</s>' }))
    assert.deepEqual([added.padToken, added.padId, added.vocabSize], ['<｜PAD▁TOKEN｜>', 512, 513])
    assert.match(changes(added), /the padding token is the EOS token "<\/s>".*"<｜PAD▁TOKEN｜>" \(512\) is added$/)
    const { again, native, config } = await saved(added)
    assert.deepEqual([again.padId, again.eosId, config.pad_token, config.padding_side], [512, 2, '<｜PAD▁TOKEN｜>', 'left'])
    assert.deepEqual((await native.encode('<｜PAD▁TOKEN｜>', null, { addSpecialTokens: false })).getIds(), [512])
    // No row is left for a new one.
    const full = await loadTokenizer(folder({ ...llama, pad_token: '</s>' }, { model: { vocab_size: 512 } }))
    assert.deepEqual([full.padToken, full.repairs.length], ['</s>', 0])
    // What the chat template writes is no padding.
    const used = {
      ...llama,
      chat_template: '<|reserved_1|>',
      added_tokens_decoder: {
        512: { content: '<|reserved_1|>', special: true },
        513: { content: '<|reserved_2|>', special: true },
      },
    }
    assert.equal((await loadTokenizer(folder(used))).padToken, '<|reserved_2|>')
  })

  it('gives tokens of roles the names that the configuration has for their ids', async () => {
    const path = folder({ ...llama, eos_token: '<|im_end|>' }, { model: { eos_token_id: 2 } })
    await rejects(loadTokenizer(path, { fix: false }), 'TOKENIZER', /EOS token "<\|im_end\|>" is not in the vocabulary/)
    const tokenizer = await loadTokenizer(path)
    assert.match(
      changes(tokenizer),
      /^names: the eos token "<\|im_end\|>" is not in the vocabulary, and its id 2 is called "<\/s>"; "<\/s>" is called "<\|im_end\|>"/,
    )
    assert.deepEqual([tokenizer.eosId, [...tokenizer.encode('a<|im_end|>')].at(-1), tokenizer.idOf('</s>')], [2, 2, undefined])
    const listed = await loadTokenizer(
      folder({ ...llama, eos_token: '<end>', added_tokens_decoder: { 2: { content: '<end>', special: true } } }, { model: {} }),
    )
    assert.deepEqual([listed.eosId, listed.tokenOf(2)], [2, '<end>'])
    const report = await examineTokenizer(path)
    assert.deepEqual(
      report.findings.filter(({ check }) => check === 'names').map(({ level, changed }) => [level, changed]),
      [['warning', '"</s>" is called "<|im_end|>"']],
    )
    const { native, names } = await saved(tokenizer)
    assert.deepEqual((await native.encode('<|im_end|>', null, { addSpecialTokens: false })).getIds(), [2])
    assert.deepEqual(names, ['tokenizer.json', 'tokenizer_config.json'])
  })

  it('leaves out added tokens beyond the embedding, unless a role needs them', async () => {
    const decoder = { 512: { content: '<a>' }, 513: { content: '<b>', special: true } }
    const tokenizer = await loadTokenizer(
      folder({ ...llama, pad_token: '<unk>', added_tokens_decoder: decoder }, { model: { vocab_size: 513 } }),
    )
    assert.match(
      changes(tokenizer),
      /^vocabulary: 1 added tokens have ids beyond the 513 rows of the embedding: "<b>"; they are left out$/,
    )
    assert.deepEqual([tokenizer.vocabSize, tokenizer.idOf('<a>'), tokenizer.idOf('<b>')], [513, 512, undefined])
    const needed = await loadTokenizer(
      folder({ ...llama, eos_token: '<b>', added_tokens_decoder: decoder }, { model: { vocab_size: 513 } }),
    )
    assert.equal(needed.vocabSize, 514)
  })

  it('reads SentencePiece models, and takes them where tokenizer.json says something else', async () => {
    const expected = JSON.parse(readFileSync(join(fixtures, 'sentencepiece/expected.json'), 'utf8')) as Record<
      string,
      { text: string; ids: number[] }[]
    >
    for (const kind of ['bpe', 'unigram']) {
      const tokenizer = await loadTokenizer(
        folderWith({
          'tokenizer.model': readFileSync(join(fixtures, `sentencepiece/${kind}.model`)),
          'tokenizer_config.json': JSON.stringify({ ...llama, pad_token: '<unk>' }),
        }),
      )
      for (const { text, ids } of expected[kind]!) assert.deepEqual([...tokenizer.encode(text)], ids, JSON.stringify(text))
      assert.deepEqual([tokenizer.bosId, tokenizer.eosId, tokenizer.addsBos, tokenizer.repairs], [1, 2, true, []])
      assert.ok((await saved(tokenizer)).names.includes('tokenizer.json'))
    }
    const model = readFileSync(join(fixtures, 'sentencepiece/bpe.model'))
    const made = (await loadTokenizer(folderWith({ 'tokenizer.model': model }))).files.definition as unknown as Definition
    const read = async (tokenizer: Json, options: TokenizerOptions = {}) =>
      loadTokenizer(
        folder({ ...llama, pad_token: '<unk>' }, { tokenizer, model: {}, files: { 'tokenizer.model': model } }),
        options,
      )
    assert.deepEqual((await read(made)).repairs, [])
    // One merge less, and words come out in other pieces.
    const merges = (made.model.merges as unknown[]).slice(1)
    const other = await read({ ...made, model: { ...made.model, merges } })
    assert.match(
      changes(other),
      /^slow form: tokenizer\.json and tokenizer\.model of \S+ cut text differently; tokenizer\.model is taken$/,
    )
    for (const { text, ids } of expected.bpe!) assert.deepEqual([...other.encode(text)], ids)
    assert.deepEqual((await read({ ...made, model: { ...made.model, merges } }, { fix: false })).repairs, [])
    await rejects(
      loadTokenizer(folderWith({ 'tokenizer.model': model.subarray(0, 500) })),
      'TOKENIZER',
      /tokenizer\.model: not a SentencePiece model/,
    )
  })

  it('makes what ends turns of a chat template the EOS token', async () => {
    const stop = { stopToken: '<|im_end|>' }
    const path = folder({ ...llama, pad_token: '<unk>' })
    const renamed = await loadTokenizer(path, stop)
    assert.deepEqual(
      [renamed.eosToken, renamed.eosId, renamed.idOf('</s>'), renamed.vocabSize],
      ['<|im_end|>', 2, undefined, 512],
    )
    assert.match(
      changes(renamed),
      /^eos: the chat template ends turns with "<\|im_end\|>", texts end with "<\/s>"; "<\|im_end\|>" is the EOS token in the place of "<\/s>"$/,
    )
    const text = chatTemplateFor(renamed, { template: 'chatml' }).render([{ role: 'user', content: 'a' }])
    assert.equal([...encodeRendered(renamed, text)].filter((id) => id === 2).length, 1)
    const { again, native, config } = await saved(renamed)
    assert.deepEqual([again.eosId, config.eos_token, again.tokenOf(2)], [2, '<|im_end|>', '<|im_end|>'])
    assert.deepEqual((await native.encode(text, null, { addSpecialTokens: false })).getIds(), [...again.encode(text)])
    const both = await loadTokenizer(
      folder({ ...llama, pad_token: '<unk>', added_tokens_decoder: { 512: { content: '<|im_end|>', special: true } } }),
      stop,
    )
    assert.deepEqual([both.eosId, both.idOf('<|im_end|>'), both.idOf('</s>')], [2, 2, 512])
    assert.match(changes(both), /and its name is swapped with that of "<\/s>"/)
    assert.deepEqual(
      (
        await loadTokenizer(
          folder({
            ...llama,
            eos_token: '<|im_end|>',
            pad_token: '<unk>',
            added_tokens_decoder: { 512: { content: '<|im_end|>', special: true } },
          }),
          stop,
        )
      ).eosId,
      512,
    )
  })

  it('follows the recipe: the named template and its token, or nothing', async () => {
    const options = async (data: string) =>
      tokenizerOptions(
        diagnoseRecipe(`model: {name: m, fix_tokenizer: false}\ndata: {local_dataset: d.jsonl${data}}\n`, 'finetune.yaml', {})
          .recipe!,
      )
    assert.deepEqual(await options(''), { fix: false })
    const { chatTemplate, stopToken } = await options(', chat_template: chatml')
    assert.match(chatTemplate!, /im_start/)
    assert.equal(stopToken, '<|im_end|>')
    assert.equal((await options(', chat_template: chatml, map_eos_token: false')).stopToken, undefined)
    assert.equal((await options(', chat_template: vicuna')).stopToken, undefined)
    assert.deepEqual(await options(', chat_template: "{{ messages }}"'), { fix: false, chatTemplate: '{{ messages }}' })
  })

  it('saves the chat template that was used, and copies what nothing was changed of', async () => {
    const path = folder({
      ...llama,
      pad_token: '<unk>',
      chat_template: "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}",
    })
    const repaired = await saved(await loadTokenizer(path))
    assert.match(String(repaired.config.chat_template), /add_generation_prompt/)
    assert.equal((await saved(await loadTokenizer(path, { chatTemplate: 'mine' }))).config.chat_template, 'mine')
    const jinja = await saved(
      await loadTokenizer(folder({ ...llama, pad_token: '<unk>' }, { files: { 'chat_template.jinja': 'theirs' } }), {
        chatTemplate: 'mine',
      }),
    )
    assert.deepEqual([jinja.again.chatTemplates.get('default'), jinja.config.chat_template], ['mine', undefined])
    const plain = await loadTokenizer(path, { fix: false })
    assert.deepEqual((await saved(plain)).config, JSON.parse(readFileSync(join(path, 'tokenizer_config.json'), 'utf8')))
  })
})
