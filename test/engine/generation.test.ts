import assert from 'node:assert/strict'
import { FastLanguageModel } from '../../engine/fastLanguageModel.ts'
import { Generator } from '../../engine/generate/generator.ts'
import { argmax, greedy } from '../../engine/generate/sampler.ts'
import type { GeneratedText, TextGenerator, TextOptions } from '../../engine/generate/textGenerator.ts'
import { allLogits } from '../../engine/verify/passes.ts'
import { failure, largeFile, makeRecipe, ownRuntimeFolder, runProgram, starter, temporaryFolder, train } from './support.ts'
import { join } from 'node:path'

const prompt = 'Once upon a time, there was a little girl named Lily.'
/** Read and found coherent. */
const stories = {
  stories260k:
    ' She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n' +
    'Lily\'s mom said, "Lily, let\'s go to the park."',
  stories15m:
    ' She loved to play outside in the sunshine. One day, she saw a big, red ball in the sky. It was the sun! She thought it was so pretty.\n' +
    "Lily wanted to play with the ball, but it was too high up in the sky. She tried to jump and reach it, but she couldn't. Then, she had an idea. " +
    'She would use a stick to knock the ball down.\n',
}

describe('generation', function () {
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)
  let text: TextGenerator
  const sampled: TextOptions = {
    maxNewTokens: 40,
    sampling: { temperature: 0.9, topK: 30, topP: 0.95, minP: 0, repetitionPenalty: 1.1 },
    stop: [],
    seed: 5,
  }
  const plain: TextOptions = { ...sampled, sampling: greedy }
  const encode = (words: string) => text.tokenizer.encode(words, { addSpecialTokens: true })
  const complete = async (words: string, options: Partial<TextOptions> = {}): Promise<GeneratedText> =>
    (await text.complete([encode(words)], { ...plain, ...options }))[0]!

  before(async () => {
    text = await FastLanguageModel.forInference({ modelName: starter, threads: 2 })
  })
  after(() => text.dispose())

  it('stories260k goes on with a coherent story', async () => {
    const { text: story, reason } = await complete(prompt, { maxNewTokens: 120 })
    assert.ok(story.startsWith(stories.stories260k), story)
    assert.equal(reason, 'length')
  })

  it('stories15m goes on with a coherent story', async () => {
    const model = largeFile('models', 'stories15m')
    if (model === undefined) return
    const larger = await FastLanguageModel.forInference({ modelName: model, threads: 2 })
    try {
      const [made] = await larger.complete([larger.tokenizer.encode(prompt, { addSpecialTokens: true })], {
        ...plain,
        maxNewTokens: 100,
      })
      assert.ok(made!.text.startsWith(stories.stories15m), made!.text)
    } finally {
      larger.dispose()
    }
  })

  it('a batch gives what each prompt gives alone, greedy and sampled', async () => {
    const prompts = [
      prompt,
      'Tom',
      'The dog was very happy because',
      'One day a cat and a bird went to the park. They saw a tree.',
      '"Hello," said',
    ].map(encode)
    for (const options of [plain, sampled]) {
      const together = await text.complete(prompts, options)
      for (const [i, ids] of prompts.entries()) assert.deepEqual(together[i], (await text.complete([ids], options))[0])
    }
  })

  it('base and tuned model write in turn what each writes alone', async () => {
    const dir = await train(makeRecipe(folder, { training: { max_steps: 20, learning_rate: 1e-2 } }))
    const both = await FastLanguageModel.forInference({ modelName: starter, adapter: join(dir, 'adapter'), threads: 2 })
    try {
      const ids = both.tokenizer.encode(prompt, { addSpecialTokens: true })
      for (const options of [plain, sampled]) {
        const turns: number[] = []
        const [tuned, base] = await both.complete([ids, ids], {
          ...options,
          base: [false, true],
          onText: (which) => turns.push(which),
        })
        assert.deepEqual(tuned, (await both.complete([ids], options))[0])
        assert.deepEqual(base, (await both.complete([ids], { ...options, base: true }))[0])
        assert.notEqual(tuned!.text, base!.text)
        const changes = turns.filter((which, at) => at > 0 && which !== turns[at - 1]).length
        assert.ok(changes > turns.length / 2, turns.join(''))
      }
    } finally {
      both.dispose()
    }
  })

  it('a neighbour that nearly fills the context shortens no text', async () => {
    const long = Int32Array.from({ length: text.model.spec.context - 3 }, (_, i) => 5 + (i % 400))
    const [alone] = await text.complete([encode('Tom')], plain)
    const [short, full] = await text.complete([encode('Tom'), long], plain)
    assert.deepEqual(short, alone)
    assert.ok(full!.newTokens <= 3)
  })

  it('with the cache it gives what the whole text gives anew at each token', async () => {
    const ids = encode(prompt)
    const { model } = text
    const generator = new Generator(model, model.base, { batch: 1, maxLength: ids.length + 24 })
    const [made] = await generator.generate([{ ids, seed: 0 }], { maxNewTokens: 24, sampling: greedy, stopIds: new Set() })
    const all = [...ids]
    for (let i = 0; i < 24; ++i)
      all.push(argmax((await allLogits(model, model.base, [Int32Array.from(all)])).slice(-model.spec.vocabulary)))
    assert.deepEqual(made, all.slice(ids.length))
  })

  it('a prompt of several parts of the plan gives the same as in one', async () => {
    const { model } = text
    const ids = encode(prompt.repeat(12)).slice(0, 400)
    const logits = (await allLogits(model, model.base, [ids])).slice(-model.spec.vocabulary)
    const generator = new Generator(model, model.base, { batch: 3, maxLength: 402 })
    // Three prompts together exceed the 512 tokens that run at once.
    const made = await generator.generate(
      [0, 1, 2].map(() => ({ ids, seed: 0, maxNewTokens: 1 })),
      { maxNewTokens: 5, sampling: greedy, stopIds: new Set() },
    )
    assert.deepEqual(
      made,
      [0, 1, 2].map(() => [argmax(logits)]),
    )
  })

  it('the seed decides', async () => {
    const [a, b, c] = [
      await complete(prompt, sampled),
      await complete(prompt, sampled),
      await complete(prompt, { ...sampled, seed: 6 }),
    ]
    assert.equal(a.text, b.text)
    assert.notEqual(a.text, c.text)
  })

  it('a stop string ends the text before it, also when tokens share it', async () => {
    const whole = await complete(prompt, { maxNewTokens: 60 })
    for (const stop of ['red ball', 'y, she s', '.']) {
      const pieces: string[] = []
      const cut = await complete(prompt, { maxNewTokens: 60, stop: [stop], onText: (_prompt, piece) => pieces.push(piece) })
      assert.equal(cut.text, whole.text.slice(0, whole.text.indexOf(stop)))
      assert.equal(cut.reason, 'stop')
      assert.equal(pieces.join(''), cut.text)
    }
  })

  it('can be cancelled, and keeps what there is', async () => {
    const abort = new AbortController()
    let shown = ''
    const made = await complete(prompt, {
      maxNewTokens: 200,
      signal: abort.signal,
      onText: (_prompt, piece) => {
        shown += piece
        if (shown.length > 20) abort.abort()
      },
    })
    assert.equal(made.reason, 'cancelled')
    assert.ok(made.newTokens < 30)
    assert.equal(made.text, shown)
  })

  it('a prompt that does not fit, or is empty, is refused', async () => {
    await assert.rejects(
      text.complete([new Int32Array(text.model.spec.context).fill(5)], plain),
      failure('USAGE', /prompt has \d+ tokens; there is room for \d+/, /Shorten/),
    )
    await assert.rejects(text.complete([new Int32Array(0)], plain), failure('USAGE', /no tokens/))
  })

  it('the command writes a run’s adapter, several prompts, JSON, chat errors', async () => {
    const dir = await train(makeRecipe(folder, { training: { max_steps: 20, learning_rate: 1e-2 } }))
    const args = ['--greedy', '--repetition_penalty', '1', '--max_new_tokens', '30', '--threads', '1']
    const [base, tuned, json] = await Promise.all([
      runProgram(['generate', starter, prompt, ...args]),
      runProgram(['generate', dir, prompt, ...args]),
      runProgram(['generate', dir, prompt, 'Tom', '--json', ...args]),
    ])
    assert.equal(base.code, 0, base.stderr)
    assert.equal(base.stdout.slice(0, prompt.length + 40), (prompt + stories.stories260k).slice(0, prompt.length + 40))
    assert.notEqual(tuned.stdout, base.stdout)
    const { results } = JSON.parse(json.stdout) as { results: { prompt: string; text: string }[] }
    assert.deepEqual(
      results.map((result) => result.prompt),
      [prompt, 'Tom'],
    )
    assert.equal(`${prompt}${results[0]!.text}\n`, tuned.stdout)
    assert.equal((await runProgram(['generate', join(dir, 'adapter'), prompt, ...args])).stdout, tuned.stdout)
    const missing = await runProgram(['generate', join(folder, 'nothing'), 'x'])
    assert.equal(missing.code, 1)
    assert.match(missing.stderr, /no model at .*nothing/)
  })
})
