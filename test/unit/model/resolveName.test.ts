import { strict as assert } from 'node:assert'
import { nameFamilies } from '../../../engine/model/names/modelNames.ts'
import { officialName, resolveName } from '../../../engine/model/names/resolveName.ts'

const four = (name: string) => resolveName(name, { loadIn4bit: true }).name
const sixteen = (name: string) => resolveName(name, { loadIn4bit: false }).name
const same = (a: string, b: string) => assert.equal(a.toLowerCase(), b.toLowerCase())

describe('resolveName', () => {
  // Repositories on the Hub are found in any case, so these compare without it.
  for (const [given, in4, in16] of [
    ['meta-llama/Meta-Llama-3-8B', 'unsloth/llama-3-8b-bnb-4bit', 'unsloth/llama-3-8b'],
    ['unsloth/llama-3-8b-bnb-4bit', 'unsloth/llama-3-8b-bnb-4bit', 'unsloth/llama-3-8b'],
    ['meta-llama/Llama-3.1-8B-Instruct', 'unsloth/llama-3.1-8b-instruct-unsloth-bnb-4bit', 'unsloth/Llama-3.1-8B-Instruct'],
    ['Qwen/Qwen3-8B', 'unsloth/qwen3-8b-unsloth-bnb-4bit', 'unsloth/Qwen3-8B'],
    ['google/gemma-3-4b-it', 'unsloth/gemma-3-4b-it-unsloth-bnb-4bit', 'unsloth/gemma-3-4b-it'],
    ['microsoft/phi-4', 'unsloth/phi-4-unsloth-bnb-4bit', 'unsloth/phi-4'],
    ['mistralai/Mixtral-8x7B-v0.1', 'unsloth/Mixtral-8x7B-v0.1-unsloth-bnb-4bit', 'unsloth/Mixtral-8x7B-v0.1'],
    ['CohereForAI/c4ai-command-r-08-2024', 'unsloth/c4ai-command-r-08-2024-bnb-4bit', 'CohereForAI/c4ai-command-r-08-2024'],
    ['foo/bar', 'foo/bar', 'foo/bar'],
  ] as const)
    it(`${given}`, () => {
      same(four(given), in4)
      same(sixteen(given), in16)
    })

  it('finds names in any case', () => same(four('QWEN/qwen2.5-0.5b'), 'unsloth/Qwen2.5-0.5B-unsloth-bnb-4bit'))
  it('keeps a 4-bit name that was given, and goes back to 16 bits from an older one', () => {
    assert.equal(four('unsloth/Llama-3.2-1B-bnb-4bit'), 'unsloth/Llama-3.2-1B-bnb-4bit')
    same(sixteen('unsloth/Llama-3.2-1B-bnb-4bit'), 'unsloth/Llama-3.2-1B')
  })
  it('takes -bf16 for 16 bits', () =>
    assert.deepEqual(resolveName('me/model-bf16', { loadIn4bit: true }), { name: 'me/model-bf16', loadIn4bit: false }))
  it('leaves an official name alone in 8 bits', () =>
    assert.equal(resolveName('Qwen/Qwen3-8B', { loadIn8bit: true }).name, 'Qwen/Qwen3-8B'))
  it('refuses a combination', () => {
    assert.throws(() => resolveName('Qwen/Qwen3-8B', { loadIn4bit: true, loadIn8bit: true }), {
      code: 'RECIPE',
      message: /not in a combination/,
    })
  })
  it('knows where a copy comes from', () => {
    assert.equal(officialName('unsloth/qwen3-8b'), 'Qwen/Qwen3-8B')
    assert.equal(officialName('foo/bar'), 'foo/bar')
  })

  it('has no repository in two models, and comes back from 4 bits to the same 16 bits', () => {
    const officials = nameFamilies.flatMap(({ official, dynamic, plain, only4 }) =>
      [dynamic, plain, only4].flatMap((list) => (list ?? []).map((variant) => official.replace('{}', variant))),
    )
    assert.ok(officials.length > 150, `${officials.length} models`)
    const quantised = new Set(officials.map((name) => four(name).toLowerCase()))
    assert.equal(quantised.size, officials.length)
    for (const name of officials) {
      assert.match(four(name), /^unsloth\/.+-bnb-4bit$/)
      assert.equal(sixteen(four(name)), sixteen(name))
      assert.equal(officialName(four(name)), name)
    }
  })
})
