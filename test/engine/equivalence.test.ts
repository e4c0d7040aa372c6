import { strict as assert } from 'node:assert'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { cpuTarget } from '../../engine/graph/target.ts'
import { Generator } from '../../engine/generate/generator.ts'
import { argmax, greedy } from '../../engine/generate/sampler.ts'
import type { Recompute } from '../../engine/graph/backward.ts'
import { LoadedModel } from '../../engine/runtime/loadedModel.ts'
import { describeModel, patchModel, type Training } from '../../engine/runtime/patchedModel.ts'
import { Runtime } from '../../engine/runtime/runtime.ts'
import { allLogits, balance, gradients, type ScoredRow } from '../../engine/verify/passes.ts'
import { packedSuffix, unpackCase } from '../golden/packedCase.ts'
import { uniform } from '../reference/matrix.ts'

const fixtures = join(dirname(fileURLToPath(import.meta.url)), '../fixtures/golden')

/** One model for each way of arranging layers, positions and experts; windows are shorter than the texts. */
const names = [
  'llama-dynamic',
  'mistral',
  'qwen2',
  'qwen3',
  'tiny-gemma',
  'tiny-gemma2',
  'tiny-gemma3',
  'tiny-phi3',
  'tiny-phi3-short',
  'tiny-phi3-long',
  'tiny-cohere',
  'tiny-cohere2',
  'tiny-granite',
  'tiny-olmo2',
  'tiny-olmo3',
  'tiny-smollm3',
  'tiny-mixtral',
  'tiny-qwen3-moe',
  'tiny-granite-moe',
  'tiny-glm4',
  'tiny-seed-oss',
  'tiny-ernie',
  'tiny-starcoder2',
  'tiny-stablelm',
  'olmo',
  'phi',
  'gpt-neox',
  'gpt2',
  'falcon',
  'qwen2-moe',
]

/** With norms behind the projections, with a factor on them, and with biases. */
const withDora: ReadonlySet<string> = new Set(['tiny-gemma2', 'tiny-granite', 'tiny-starcoder2'])

const tokens = (length: number, seed: number): Int32Array => {
  const next = uniform(seed)
  return Int32Array.from({ length }, () => 3 + Math.floor(next() * 90))
}

function relative(a: Float32Array, b: Float32Array): number {
  let difference = 0
  let size = 0
  b.forEach((value, i) => {
    difference += (a[i]! - value) ** 2
    size += value ** 2
  })
  return Math.sqrt(difference / size)
}

describe('the same computation done in different ways', () => {
  let folder: string
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'equivalence-'))
    for (const name of names) await unpackCase(join(fixtures, `${name}${packedSuffix}`), join(folder, name))
  })
  after(() => rm(folder, { recursive: true }))

  async function withModel<T>(
    name: string,
    training: Training,
    threads: number,
    use: (model: LoadedModel) => Promise<T>,
    target = cpuTarget(),
  ): Promise<T> {
    const runtime = new Runtime({ kind: 'cpu', threads })
    try {
      return await use(
        await LoadedModel.load(patchModel(await describeModel(join(folder, name)), training, target), runtime, { seed: 1 }),
      )
    } finally {
      runtime.dispose()
    }
  }

  const frozen: Training = { kind: 'none' }

  for (const name of names) {
    describe(name, () => {
      it('packed rows equal each row alone', () =>
        withModel(name, frozen, 2, async (model) => {
          const rows = [tokens(40, 1), tokens(1, 2), tokens(9, 3), tokens(17, 4)]
          const packed = await allLogits(model, model.base, rows)
          let from = 0
          for (const row of rows) {
            const alone = await allLogits(model, model.base, [row])
            const error = relative(packed.subarray(from, from + alone.length), alone)
            assert.ok(error < 1e-6, `relative error ${error}`)
            from += alone.length
          }
        }))

      it('generation in a batch, with a cache, equals the whole text run at once', () =>
        withModel(name, frozen, 2, async (model) => {
          const prompts = [tokens(5, 5), tokens(21, 6), tokens(1, 7)]
          const maxNewTokens = 20
          const options = { maxNewTokens, sampling: greedy, stopIds: new Set<number>() }
          const batch = await new Generator(model, model.base, { batch: 3, maxLength: 41 }).generate(
            prompts.map((ids) => ({ ids, seed: 0 })),
            options,
          )
          for (const [i, prompt] of prompts.entries()) {
            const [single] = await new Generator(model, model.base, { batch: 1, maxLength: 41 }).generate(
              [{ ids: prompt, seed: 0 }],
              options,
            )
            assert.deepEqual(batch[i], single)
            // Frequencies that depend on length are those of prompt and new tokens together.
            const text = Int32Array.from([...prompt, ...batch[i]!])
            const logits = await allLogits(model, model.base, [text], prompt.length + maxNewTokens)
            const { vocabulary } = model.spec
            const again = batch[i]!.map((_, made) =>
              argmax(logits.subarray((prompt.length + made - 1) * vocabulary, (prompt.length + made) * vocabulary)),
            )
            assert.deepEqual(batch[i], again)
          }
        }))

      for (const training of ['lora', 'full', ...(withDora.has(name) ? ['dora' as const] : [])] as const)
        it(`${training} gradients: recomputed equal saved, one thread two, and offloaded kept, bit for bit; tiles of rows equal all rows`, async () => {
          const rows: ScoredRow[] = [tokens(30, 8), tokens(11, 9)].map((ids) => ({
            ids,
            weight: (position) => (position % 3 === 0 ? undefined : 0.05),
          }))
          const targets = name.includes('mixtral') ? ['q_proj', 'gate_proj', 'down_proj'] : 'all-linear'
          const lora: Training = {
            kind: 'lora',
            r: 3,
            alpha: 6,
            dropout: 0,
            rslora: false,
            targets,
            modulesToSave: [],
            dora: training === 'dora',
          }
          const of = (recompute: Recompute, threads: number, { target = cpuTarget(), offload = 0 } = {}) =>
            withModel(
              name,
              training === 'full' ? { kind: 'full' } : lora,
              threads,
              async (model) => {
                // B starts at zero, where A has no gradient.
                for (const parameter of model.patched.layout.parameters.filter((each) => each.name.includes('lora_B')))
                  model.writeParameter(
                    parameter.name,
                    Float32Array.from({ length: parameter.rows * parameter.cols }, (_, i) => Math.sin(i) / 20),
                  )
                await gradients(model, rows, { recompute, offload })
                return model.runtime.readFloats('grads', 0, model.patched.layout.elements)
              },
              target,
            )
          const saved = await of('none', 1)
          assert.ok(saved.some((value) => value !== 0))
          for (const [recompute, threads] of [
            ['mlp', 1],
            ['projections', 1],
            ['layer', 2],
          ] as const)
            assert.deepEqual(await of(recompute, threads), saved, `${recompute}, ${threads} threads`)
          for (const recompute of ['none', 'layer'] as const) {
            assert.deepEqual(await of(recompute, 2, { offload: 100 }), saved, `offloaded, ${recompute}`)
            const error = relative(
              await of(recompute, 2, { target: { ...cpuTarget(), tileRows: 7 }, offload: recompute === 'layer' ? 2 : 0 }),
              saved,
            )
            assert.ok(error < 2e-6, `tiles, ${recompute}: relative error ${error}`)
          }
        })
    })
  }

  it('the gradient of the routers’ balance loss is that of the loss', async () => {
    const target = join(folder, 'balanced')
    await unpackCase(join(fixtures, `tiny-mixtral${packedSuffix}`), target)
    const file = join(target, 'config.json')
    const factor = 20
    await writeFile(
      file,
      JSON.stringify({
        ...(JSON.parse(await readFile(file, 'utf8')) as object),
        output_router_logits: true,
        router_aux_loss_coef: factor,
      }),
    )
    const rows: ScoredRow[] = [tokens(30, 8), tokens(11, 9)].map((ids) => ({ ids, weight: () => 1 / 39 }))
    const training: Training = {
      kind: 'lora',
      r: 3,
      alpha: 6,
      dropout: 0,
      rslora: false,
      targets: ['v_proj', 'up_proj'],
      modulesToSave: [],
    }
    await withModel('balanced', training, 2, async (model) => {
      const { parameters, elements } = model.patched.layout
      const start = Float32Array.from({ length: elements }, (_, i) => Math.sin(i) / 10)
      const lossAt = async (direction: Float32Array, step: number) => {
        model.runtime.write(
          'params',
          0,
          start.map((value, i) => value + step * direction[i]!),
        )
        return (await gradients(model, rows)) + factor * (await balance(model, model.trained, rows))
      }
      await lossAt(start, 0)
      const gradient = model.runtime.readFloats('grads', 0, elements)
      const squares = gradient.reduce((sum, value) => sum + value * value, 0)
      const step = 2e-3 / Math.sqrt(squares)
      const slope = ((await lossAt(gradient, step)) - (await lossAt(gradient, -step))) / (2 * step)
      assert.ok(
        Math.abs(slope / squares - 1) < 5e-3,
        `${slope} by differences, ${squares} by the backward pass, ${parameters.length} matrices`,
      )
    })
  })
})
