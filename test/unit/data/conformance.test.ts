import assert from 'node:assert/strict'
import { join } from 'node:path'
import { Tokenizer as NativeTokenizer } from 'tokenizers'
import { Xoshiro128 } from '../../../engine/data/random.ts'
import { fixtures, fixtureTokenizer } from './support.ts'
import { mixedText } from './mixedTexts.ts'

const names = ['stories260k', 'llama', 'qwen2.5', 'mistral-v0.3'] as const
const texts = 10_000
/** Milliseconds for each tokenizer; a slow machine compares fewer texts, but never fewer than `least`. */
const budget = 5_000
const least = 1_000

describe('tokenizer against the native engine', () => {
  for (const name of names) {
    it(`gives the same ids for mixed texts: ${name}`, async () => {
      const tokenizer = await fixtureTokenizer(name)
      const native = NativeTokenizer.fromFile(join(fixtures, name, 'tokenizer.json'))
      const special = [...tokenizer.specialIds].slice(0, 40).map((id) => tokenizer.tokenOf(id)!)
      const random = new Xoshiro128(5)
      const since = performance.now()
      for (let done = 0; done < texts && (done < least || performance.now() - since < budget); done += 500) {
        const batch = Array.from({ length: 500 }, () => mixedText(random, special))
        const expected = await native.encodeBatch(batch, { addSpecialTokens: false })
        for (const [index, text] of batch.entries())
          assert.deepEqual([...tokenizer.encode(text)], expected[index]!.getIds(), JSON.stringify(text))
      }
    })

    it(`marks places at which tokens begin: ${name}`, async () => {
      const tokenizer = await fixtureTokenizer(name)
      const special = [...tokenizer.specialIds].slice(0, 40).map((id) => tokenizer.tokenOf(id)!)
      const random = new Xoshiro128(6)
      let marked = 0
      for (let round = 0; round < 300; round++) {
        const text = mixedText(random, special)
        const { ids, marks } = tokenizer.encodeMarked!(text)!
        assert.deepEqual(ids, tokenizer.encode(text))
        for (const [index, at] of marks.at.entries()) {
          if (!/^[ -~]*$/.test(text)) continue
          // What the tokens before a mark say is the text before it.
          assert.equal(tokenizer.decode(ids.subarray(0, marks.tokens[index])).trim(), text.slice(0, at).trim(), JSON.stringify([text, at]))
          marked++
        }
      }
      assert.ok(marked > 10)
    })
  }
})
