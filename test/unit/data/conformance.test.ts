import assert from 'node:assert/strict'
import { join } from 'node:path'
import { Tokenizer as NativeTokenizer } from 'tokenizers'
import { Xoshiro128 } from '../../../engine/data/random.ts'
import { loadTokenizer, type Tokenizer } from '../../../engine/data/tokenizer.ts'
import { fixtures, fixtureTokenizer } from './support.ts'
import { unpackVocabularies, vocabularies } from './llamaCppVocabularies.ts'
import { mixedText } from './mixedTexts.ts'

const names = ['stories260k', 'llama', 'qwen2.5', 'mistral-v0.3'] as const
const texts = 10_000
const batchTexts = 500
/** Milliseconds for each tokenizer, after which a loaded machine compares no more texts; `UNSLOTH_SWEEP=1` compares all. */
const budget = process.env.UNSLOTH_SWEEP === '1' ? Infinity : 2_000
const least = 1_000

const specialOf = (tokenizer: Tokenizer): string[] => [...tokenizer.specialIds].slice(0, 40).map((id) => tokenizer.tokenOf(id)!)

/** Every id of mixed texts is the one that the native engine gives. */
async function compare(tokenizer: Tokenizer, folder: string): Promise<void> {
  const native = NativeTokenizer.fromFile(join(folder, 'tokenizer.json'))
  const random = new Xoshiro128(5)
  const special = specialOf(tokenizer)
  const since = performance.now()
  for (let done = 0; done < texts && (done < least || performance.now() - since < budget); done += batchTexts) {
    const batch = Array.from({ length: batchTexts }, () => mixedText(random, special))
    const expected = await native.encodeBatch(batch, { addSpecialTokens: false })
    for (const [index, text] of batch.entries()) {
      const [got, ids] = [tokenizer.encode(text), expected[index]!.getIds()]
      if (got.length !== ids.length || ids.some((id, at) => got[at] !== id)) assert.deepEqual([...got], ids, JSON.stringify(text))
    }
  }
}

describe('tokenizer against the native engine', function () {
  for (const name of names) {
    it(`gives the same ids for mixed texts: ${name}`, async () => compare(await fixtureTokenizer(name), join(fixtures, name)))

    it(`marks places at which tokens begin: ${name}`, async () => {
      const tokenizer = await fixtureTokenizer(name)
      const random = new Xoshiro128(6)
      let marked = 0
      for (let round = 0; round < 300; round++) {
        const text = mixedText(random, specialOf(tokenizer))
        const { ids, marks } = tokenizer.encodeMarked!(text)!
        assert.deepEqual(ids, tokenizer.encode(text))
        for (const [index, at] of marks.at.entries()) {
          if (!/^[ -~]*$/.test(text)) continue
          // What the tokens before a mark say is the text before it.
          assert.equal(
            tokenizer.decode(ids.subarray(0, marks.tokens[index])).trim(),
            text.slice(0, at).trim(),
            JSON.stringify([text, at]),
          )
          marked++
        }
      }
      assert.ok(marked > 10)
    })
  }

  describe('with vocabularies of llama.cpp', () => {
    let unpacked: ReturnType<typeof unpackVocabularies>
    before(() => {
      unpacked = unpackVocabularies()
    })
    after(() => unpacked.remove())

    for (const name of vocabularies) {
      it(`gives the same ids for mixed texts, and those of llama.cpp: ${name}`, async () => {
        const { folder, tests } = unpacked.of(name)
        const tokenizer = await loadTokenizer(folder)
        for (const { text, ids } of tests) assert.deepEqual([...tokenizer.encode(text)], ids, JSON.stringify(text))
        await compare(tokenizer, folder)
      })
    }
  })
})
