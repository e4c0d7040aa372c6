import assert from 'node:assert/strict'
import { cpSync, existsSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { UnslothError, type ErrorCode } from '#shared/errors.ts'
import { executeRun } from '../../engine/cli/runLauncher.ts'
import { RunDirectory } from '../../engine/run/runDirectory.ts'
import { openTensorSource } from '../../engine/io/tensorSource.ts'
import { prepareRun } from '../../engine/train/prepareRun.ts'
import { planTraining } from '../../engine/train/trainingPlan.ts'
import { TrainingRun } from '../../engine/train/trainingRun.ts'
import { RunControl } from '../../engine/train/runControl.ts'
import { smallDisk } from '../unit/run/support.ts'
import {
  createRun,
  eventsOf,
  makeRecipe,
  ownRuntimeFolder,
  runProgram,
  starter,
  temporaryFolder,
  train,
  writeJsonl,
  type RecipeSections,
} from './support.ts'

describe('bad input is refused with its place and what to do', function () {
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)
  let copies = 0

  /** A copy of the starter that can be damaged. */
  function copy(): {
    model: string
    weights: string
    config: (change: Record<string, unknown>) => void
    header: (change: (text: string) => string) => void
  } {
    const model = join(folder, `model-${++copies}`)
    cpSync(starter, model, { recursive: true })
    const weights = join(model, 'model.safetensors')
    const path = join(model, 'config.json')
    return {
      model,
      weights,
      config: (change) =>
        writeFileSync(path, JSON.stringify({ ...(JSON.parse(readFileSync(path, 'utf8')) as object), ...change })),
      header: (change) => {
        const file = readFileSync(weights)
        const length = Number(file.readBigUInt64LE(0))
        const text = Buffer.from(change(file.toString('utf8', 8, 8 + length)))
        const size = Buffer.alloc(8)
        size.writeBigUInt64LE(BigInt(text.length))
        writeFileSync(weights, Buffer.concat([size, text, file.subarray(8 + length)]))
      },
    }
  }

  /** The run fails with this code; message and hint match; the status keeps both. */
  async function refused(sections: RecipeSections, code: ErrorCode, message: RegExp, hint: RegExp): Promise<void> {
    const recipe = makeRecipe(folder, sections)
    const run = createRun(recipe)
    let error: unknown
    await executeRun(run.dir).catch((caught: unknown) => (error = caught))
    assert.ok(UnslothError.is(error), `it was not refused, or not well: ${String(error)}`)
    assert.equal(error.code, code, error.message)
    assert.match(error.message, message)
    assert.match(error.hint ?? '', hint)
    const status = await run.reader().status()
    assert.deepEqual([status.state, status.error?.code, status.error?.message], ['failed', code, error.message])
  }

  describe('models', () => {
    it('no safetensors', async () => {
      const { model, weights } = copy()
      rmSync(weights)
      await refused({ model }, 'FILE_NOT_FOUND', new RegExp(model), /./)
    })
    it('no such folder', () => refused({ model: join(folder, 'nothing') }, 'FILE_NOT_FOUND', /nothing/, /Check the path/))
    it('a truncated file', async () => {
      const { model, weights } = copy()
      truncateSync(weights, 100_000)
      await refused({ model }, 'FILE_FORMAT', /model\.safetensors/, /./)
    })
    it('a file cut inside its header', async () => {
      const { model, weights } = copy()
      truncateSync(weights, 500)
      await refused({ model }, 'FILE_FORMAT', /model\.safetensors/, /./)
    })
    it('a wrong header length', async () => {
      const { model, weights } = copy()
      const file = readFileSync(weights)
      file.writeBigUInt64LE(1n << 60n)
      writeFileSync(weights, file)
      await refused({ model }, 'FILE_FORMAT', /model\.safetensors.*header/s, /./)
    })
    it('overlapping offsets', async () => {
      const { model, header } = copy()
      header((text) => {
        const tensors = JSON.parse(text) as Record<string, { data_offsets: number[] }>
        const names = Object.keys(tensors)
          .filter((name) => name !== '__metadata__')
          .sort((a, b) => tensors[a]!.data_offsets[0]! - tensors[b]!.data_offsets[0]!)
        const [first, second] = names
        const shift = tensors[second!]!.data_offsets.map((at) => at - 2)
        tensors[second!]!.data_offsets = shift
        assert.notEqual(first, second)
        return JSON.stringify(tensors)
      })
      await refused({ model }, 'FILE_FORMAT', /model\.safetensors: .*model\./s, /./)
    })
    it('shapes that are not those of config.json', async () => {
      const { model, config } = copy()
      config({ intermediate_size: 128 })
      await refused(
        { model },
        'MODEL_INVALID',
        /model\.safetensors: model\.layers\.0\.mlp\.gate_proj\.weight has shape \[172, 64\], but config\.json asks for \[128, 64\]/,
        /different models/,
      )
    })
    it('a missing tensor', async () => {
      const { model, config } = copy()
      config({ num_hidden_layers: 6 })
      await refused({ model }, 'MODEL_INVALID', /model\.layers\.5\./, /./)
    })
    it('an unknown architecture lists the supported ones', async () => {
      const { model, config } = copy()
      config({ architectures: ['FrobnicateForCausalLM'], model_type: 'frobnicate' })
      await refused({ model }, 'MODEL_UNSUPPORTED', /FrobnicateForCausalLM/, /LlamaForCausalLM.*MistralForCausalLM.*Qwen/s)
    })
    it('a configuration without a size', async () => {
      const { model, config } = copy()
      config({ hidden_size: undefined })
      await refused({ model }, 'MODEL_INVALID', /config\.json.*hidden_size/s, /(?:)/)
    })
    it('an unsupported dtype', async () => {
      const { model, header } = copy()
      header((text) =>
        text
          .replace(/("model\.norm\.weight":\{"dtype":)"\w+"/, '$1"I16"')
          .replace(/("model\.norm\.weight":\{[^}]*"shape":)\[64\]/, '$1[64]'),
      )
      await refused({ model }, 'MODEL_UNSUPPORTED', /model\.norm\.weight has dtype I16/, /Supported: F32, BF16, F16/)
    })
    for (const [what, bits] of [
      ['NaN', 0x7fc0],
      ['infinite', 0x7f80],
    ] as const)
      it(`weights that are ${what}`, async () => {
        const { model, weights } = copy()
        const tensor = (await openTensorSource(weights)).tensors.get('model.layers.3.mlp.up_proj.weight')!
        assert.equal(tensor.dtype, 'BF16')
        const file = readFileSync(weights)
        file.writeUInt16LE(bits, tensor.offset + 2 * 77)
        writeFileSync(weights, file)
        await refused(
          { model },
          'MODEL_INVALID',
          /model\.safetensors: model\.layers\.3\.mlp\.up_proj\.weight holds 1 values that are NaN or infinite/,
          /download it again/,
        )
      })
    it('weights beyond float16, where they are to be kept so', async () => {
      const { model, weights } = copy()
      const tensor = (await openTensorSource(weights)).tensors.get('model.layers.3.mlp.up_proj.weight')!
      const file = readFileSync(weights)
      file.writeUInt16LE(0x4780, tensor.offset + 2 * 77) // 65536
      writeFileSync(weights, file)
      await refused(
        { model: { name: model, dtype: 'float16' } },
        'MODEL_INVALID',
        /up_proj\.weight holds 1 values that are NaN, infinite, or beyond 65504, where float16 ends/,
        /training\.compute to bfloat16/,
      )
    })
    it('a tokenizer larger than the embedding, where it is not to be repaired', async () => {
      const { model } = copy()
      const path = join(model, 'tokenizer.json')
      const tokenizer = JSON.parse(readFileSync(path, 'utf8')) as { added_tokens: Record<string, unknown>[] }
      tokenizer.added_tokens.push({
        id: 512,
        content: '<|extra|>',
        special: true,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
      })
      writeFileSync(path, JSON.stringify(tokenizer))
      await refused(
        { model: { name: model, fix_tokenizer: false } },
        'TOKENIZER',
        /tokenizer\.json: the token .*<\|extra\|>.* has the id 512, but the embedding of the model has only 512 rows/,
        /Take the tokenizer that belongs/,
      )
    })
  })

  describe('data', () => {
    const data = (name: string, rows: readonly unknown[]) => ({ local_dataset: writeJsonl(join(folder, name), rows) })
    it('no such file', () =>
      refused({ data: { local_dataset: join(folder, 'nothing.jsonl') } }, 'FILE_NOT_FOUND', /nothing\.jsonl/, /./))
    it('an empty set', () =>
      refused({ data: data('empty.jsonl', []) }, 'DATA', /empty\.jsonl: the data set is empty/, /at least one row/))
    it('a broken row, by its line', async () => {
      const path = join(folder, 'broken.jsonl')
      writeFileSync(path, '{"text": "fine"}\n{"text": \n')
      await refused({ data: { local_dataset: path } }, 'DATA', /broken\.jsonl:2/, /./)
    })
    it('rows without a known column name the columns there are', () =>
      refused({ data: data('columns.jsonl', [{ frob: 'x' }]) }, 'DATA', /columns\.jsonl.*frob/s, /./))
    const pair = (length: number) => ({ prompt: 'a long question '.repeat(length), completion: 'yes' })
    it('all labels masked, with reason and hints', () =>
      refused(
        { data: data('masked.jsonl', [pair(40), pair(50)]), training: { max_seq_length: 64 } },
        'DATA',
        /all labels are masked \(−100\) in all 2 rows.*1.*2/s,
        /loss would be 0.*max_seq_length/s,
      ))
    it('nearly all labels masked: a warning', async () => {
      const rows = [...Array.from({ length: 19 }, () => pair(40)), pair(1)]
      const prepared = await prepareRun(
        makeRecipe(folder, { data: data('nearly.jsonl', rows), training: { max_seq_length: 64, max_steps: 1 } }),
      )
      assert.match(prepared.warnings.join('\n'), /Nearly all rows have only masked labels/)
      assert.match(prepared.warnings.join('\n'), /19 of 20 rows have nothing to learn from/)
      assert.equal(prepared.samples.length, 1)
    })
    it('samples that are too long are cut with a warning that counts them', async () => {
      const prepared = await prepareRun(makeRecipe(folder, { training: { max_seq_length: 40 } }))
      assert.match(prepared.warnings.join('\n'), /2\d of 24 rows are longer than max_seq_length \(40 tokens\) and were cut/)
      assert.ok(prepared.samples.every(({ ids }) => ids.length <= 40))
    })
    it('a length beyond the model’s context warns how positions are stretched', async () => {
      const prepared = await prepareRun(makeRecipe(folder, { training: { max_seq_length: 1024 } }))
      assert.match(prepared.warnings.join('\n'), /1024|1,024/)
    })
  })

  describe('training', () => {
    it('a loss that is not finite stops the run and names step and tensor', async () => {
      await refused(
        {
          training: {
            learning_rate: 0.99,
            max_grad_norm: 0,
            max_steps: 200,
            weight_decay: 0,
            adam_beta2: 0.1,
            training_type: 'full',
          },
          save: { method: ['merged_16bit'] },
        },
        'NON_FINITE',
        /(loss|gradient) of step \d+ is (NaN|Infinity|not finite).*(first tensor that is not finite is \S+| in \S+)/,
        /learning_rate/,
      )
    })
    it('memory that is not there, with the largest part', async () => {
      const prepared = await prepareRun(makeRecipe(folder))
      const options = {
        longestSample: 256,
        longestStep: 1024,
        sequences: 4,
        evaluates: false,
        availableBytes: 1e6,
        threads: 1,
      } as const
      assert.throws(
        () => planTraining(prepared.model.patched, { ...options, checkpointing: 'auto' }),
        (error) =>
          UnslothError.is(error, 'MEMORY') &&
          /needs [\d.]+ MB, but only 977 KB are free; the largest part is/.test(error.message) &&
          (error.hint ?? '').includes('max_seq_length'),
      )
      assert.throws(
        () => planTraining(prepared.model.patched, { ...options, checkpointing: 'none' }),
        (error) => UnslothError.is(error, 'MEMORY') && (error.hint ?? '').includes('gradient_checkpointing: auto'),
      )
    })
    it('a disk that is full stops the run; the checkpoints before stay', async () => {
      const run = RunDirectory.create(join(folder, 'outputs'), 'full', 'version: 1\n')
      const disk = smallDisk(2_000_000)
      const writer = await run.lock({ disk })
      const recipe = makeRecipe(folder, { training: { max_steps: 6, save_steps: 1 } })
      const events = { onStep: ({ step }: { step: number }) => void (step === 4 && (disk.room = 0)) }
      await assert.rejects(
        new TrainingRun(writer, recipe, new RunControl(), events).execute(),
        (error) => UnslothError.is(error, 'FILE_WRITE') && /space|full/i.test(error.message),
      )
      disk.room = 1e9
      await writer.close()
      const { checkpoint } = await run.reader().view()
      assert.equal(checkpoint?.step, 3)
      assert.ok(!existsSync(join(run.dir, 'adapter')))
    })
    it('a failed run resumes from its newest checkpoint', async () => {
      const dir = await train(makeRecipe(folder, { training: { save_steps: 1 } }))
      await assert.rejects(
        train(makeRecipe(folder, { training: { resume_from: join(folder, 'nothing') } })),
        (error) => UnslothError.is(error, 'RUN_INVALID') && error.message.includes('no complete checkpoint'),
      )
      const next = await train(makeRecipe(folder, { training: { resume_from: dir } }))
      assert.equal(eventsOf(next).find(({ event }) => event === 'resume')?.step, 3)
      await assert.rejects(
        train(makeRecipe(folder, { training: { resume_from: dir }, lora: { lora_r: 8 } })),
        (error) => UnslothError.is(error, 'MODEL_INVALID') && error.message.includes('lora_A.weight has shape'),
      )
    })
    it('a finished run is not resumed', async () => {
      const dir = await train(makeRecipe(folder))
      const { code, stderr } = await runProgram(['resume', dir])
      assert.equal(code, 1)
      assert.match(stderr, /the run is finished.*\n.*init_adapter/)
    })
  })
})
