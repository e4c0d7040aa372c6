import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { openTensorSource } from '../../engine/io/tensorSource.ts'
import { RunDirectory } from '../../engine/run/runDirectory.ts'
import { packedSuffix, unpackCase } from '../golden/packedCase.ts'
import { makeRecipe, ownRuntimeFolder, program, runProgram, starter, temporaryFolder, writeJsonl } from './support.ts'
import { contention } from '../machineTime.ts'

describe('the command line', function () {
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)
  const yaml = () => join(folder, 'finetune.yaml')
  before(() => {
    makeRecipe(folder)
    writeFileSync(
      yaml(),
      `version: 1\nmodel: ${starter}\ndata:\n  local_dataset: fables.jsonl\ntraining:\n  max_seq_length: 256\n  max_steps: 3\n  threads: 1\n`,
    )
  })

  it('--dry-run prints the resolved recipe, the plan and its memory part by part, and trains nothing', async () => {
    const { code, stdout, stderr } = await runProgram(['finetune', yaml(), '--dry-run', '--learning_rate', '0.001'])
    assert.equal(code, 0, stderr)
    assert.match(stdout, /learning_rate: 0\.001/)
    assert.match(stdout, /model: .*llama.*5 layers/)
    assert.match(stdout, /patched 5 layers: 5 fused QKV, 5 O, 5 MLP/)
    for (const part of ['frozen weights', 'adapters', 'gradients', 'optimizer', 'activations', 'kernel scratch', 'total'])
      assert.match(stdout, new RegExp(`^ +${part} +[\\d.]+ [KMG]?B$`, 'm'))
    assert.ok(!readdirSync(folder).includes('outputs'))
  })

  it('--dry-run --json is one object', async () => {
    const { stdout } = await runProgram(['finetune', yaml(), '--dry-run', '--json'])
    const report = JSON.parse(stdout) as {
      recipe: { training: { max_steps: number } }
      memory: { parts: { bytes: number }[]; totalBytes: number }
      totalSteps: number
    }
    assert.equal(report.recipe.training.max_steps, 3)
    assert.equal(report.totalSteps, 3)
    assert.equal(
      report.memory.parts.reduce((sum, { bytes }) => sum + bytes, 0),
      report.memory.totalBytes,
    )
  })

  it('piped output is plain lines, one for each step', async () => {
    const { code, stdout, stderr } = await runProgram(['finetune', yaml()])
    assert.equal(code, 0, stderr)
    assert.ok(!stdout.includes('\r') && !stdout.includes('\x1b'))
    for (const step of [1, 2, 3]) assert.match(stdout, new RegExp(`^step ${step}/3 .*loss \\d+\\.\\d{4}`, 'm'))
    assert.match(stdout, /^saved adapter: .*adapter$/m)
  })

  it('logging_steps thins the lines, not the record', async () => {
    const { stdout } = await runProgram([
      'finetune',
      yaml(),
      '--max_steps',
      '6',
      '--logging_steps',
      '4',
      '--output_dir',
      join(folder, 'thin'),
    ])
    assert.deepEqual(
      [...stdout.matchAll(/^step (\d+)\/6/gm)].map(([, step]) => step),
      ['1', '4', '6'],
    )
    const [name] = readdirSync(join(folder, 'thin'))
    assert.equal(
      (
        await RunDirectory.open(join(folder, 'thin', name!))
          .reader()
          .readMetrics()
      ).steps.length,
      6,
    )
  })

  it('--json of a run tells where it is and how it ended', async () => {
    const { stdout } = await runProgram(['finetune', yaml(), '--json'])
    const { ending, status, dir } = JSON.parse(stdout) as {
      ending: string
      dir: string
      status: { step: number; outputs: { kind: string }[] }
    }
    assert.deepEqual([ending, status.step, status.outputs.map(({ kind }) => kind)], ['finished', 3, ['adapter']])
    assert.ok(RunDirectory.isRun(dir))
  })

  it('an old command line of the Python program works when pasted, and its token is recorded nowhere', async () => {
    const secret = 'hf_ThisIsASecretThatMustNotBeKept'
    const rows = writeJsonl(
      join(folder, 'alpaca.jsonl'),
      [1, 2, 3, 4].map((n) => ({ instruction: `Count to ${n}.`, input: '', output: `${n} is the end.` })),
    )
    const outputs = join(folder, 'old')
    const { code, stdout, stderr } = await runProgram([
      'finetune',
      '--model_name',
      starter,
      '--max_seq_length',
      '256',
      '--dtype',
      'None',
      '--r',
      '8',
      '--lora_alpha',
      '16',
      '--lora_dropout',
      '0',
      '--bias',
      'none',
      '--use_gradient_checkpointing',
      'unsloth',
      '--random_state',
      '3407',
      '--dataset',
      rows,
      '--per_device_train_batch_size',
      '2',
      '--gradient_accumulation_steps',
      '1',
      '--warmup_steps',
      '1',
      '--max_steps',
      '2',
      '--learning_rate',
      '2e-4',
      '--optim',
      'adamw_8bit',
      '--weight_decay',
      '0.01',
      '--lr_scheduler_type',
      'linear',
      '--seed',
      '3407',
      '--output_dir',
      outputs,
      '--report_to',
      'none',
      '--save_model',
      '--save_path',
      join(folder, 'old-model'),
      '--save_method',
      'merged_16bit',
      '--hub_token',
      secret,
    ])
    assert.equal(code, 0, stderr)
    assert.match(stderr, /hub_token is not used and not recorded/)
    assert.equal((await openTensorSource(join(folder, 'old-model'))).tensors.size, 47)
    for (const file of readdirSync(outputs, { recursive: true, encoding: 'utf8' }).map((name) => join(outputs, name)))
      if (!file.endsWith('outputs')) assert.ok(!contentOf(file).includes(secret), file)
    assert.ok(!(stdout + stderr).includes(secret))
  })

  it('exit codes: 2 for a wrong command line, 1 for anything else that is wrong', async () => {
    const cases: [string[], number, RegExp][] = [
      [['finetune', '--learning_rat', '1'], 2, /learning_rat.*did you mean/s],
      [['frobnicate'], 2, /not a command/],
      [['finetune', join(folder, 'nothing.yaml')], 1, /no recipe .*nothing\.yaml/],
      [['finetune', '--model', join(folder, 'nothing'), '--local_dataset', join(folder, 'fables.jsonl')], 1, /nothing/],
      [['status', folder, '--json'], 0, /^$/],
      [['version'], 0, /^$/],
    ]
    const ended = await Promise.all(cases.map(([args]) => runProgram(args, { cwd: folder })))
    cases.forEach(([args, code, message], i) => {
      assert.equal(ended[i]!.code, code, args.join(' '))
      assert.match(ended[i]!.stderr, message)
    })
  })

  it('a run that fails says so, in its status, its log and its exit code', async () => {
    writeJsonl(join(folder, 'broken.jsonl'), [])
    const { code, stderr } = await runProgram([
      'finetune',
      yaml(),
      '--local_dataset',
      join(folder, 'broken.jsonl'),
      '--output_dir',
      join(folder, 'failed'),
    ])
    assert.equal(code, 1)
    assert.match(stderr, /error: .*broken\.jsonl.*empty/)
    const [name] = readdirSync(join(folder, 'failed'))
    const run = RunDirectory.open(join(folder, 'failed', name!))
    const { state, error } = await run.reader().status()
    assert.deepEqual([state, error?.code], ['failed', 'DATA'])
    assert.match(await run.reader().tail(5), /empty/)
  })

  it('the demo’s recipe takes its first step soon after the program has started', async () => {
    const best = Math.min(...[await firstStep(), await firstStep()])
    console.log(`      ${best.toFixed(0)} ms from the program's start to its first step`)
    const slower = contention()
    assert.ok(best < 3000 * slower, `${best} ms on a machine that is ${slower.toFixed(1)} times slower than at rest`)
  })

  /** Milliseconds from the program's start to the line of its first step. */
  async function firstStep(): Promise<number> {
    const began = performance.now()
    const child = spawn(
      process.execPath,
      [
        program,
        'finetune',
        join(starter, '..', 'finetune.yaml'),
        '--output_dir',
        join(folder, 'demo'),
        '--max_steps',
        '2',
        '--warmup_steps',
        '0',
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    )
    let time = NaN
    let text = ''
    child.stdout.setEncoding('utf8').on('data', (piece: string) => {
      text += piece
      if (Number.isNaN(time) && /^step 1\//m.test(text)) time = performance.now() - began
    })
    await new Promise((resolve) => child.once('close', resolve))
    assert.ok(Number.isFinite(time), text)
    return time
  }

  describe('verify', () => {
    const golden = join(folder, 'llama-gqa')
    before(async () => {
      mkdirSync(golden, { recursive: true })
      await unpackCase(join(import.meta.dirname, '..', 'fixtures', 'golden', `llama-gqa${packedSuffix}`), golden)
    })

    it('ends with 0 when all is well, and writes what it computed under the golden’s names', async () => {
      const out = join(folder, 'computed.safetensors')
      const { code, stdout } = await runProgram(['verify', golden, '--out', out])
      assert.equal(code, 0, stdout)
      assert.match(stdout, /all \d+ quantities agree/)
      // A golden file made of it agrees with it.
      const again = join(folder, 'again')
      mkdirSync(again)
      await unpackCase(join(import.meta.dirname, '..', 'fixtures', 'golden', `llama-gqa${packedSuffix}`), again)
      const expected = await openTensorSource(join(golden, 'golden.safetensors'))
      const computed = await openTensorSource(out)
      for (const [name, { shape }] of expected.tensors) {
        const mine = computed.tensors.get(name)
        if (mine !== undefined) assert.deepEqual(mine.shape, shape, name)
      }
      assert.ok([...expected.tensors.keys()].filter((name) => computed.tensors.has(name)).length > 15)
    })

    it('ends with 1 when a quantity is wrong or missing, unless it is named in --skip', async () => {
      const bad = join(folder, 'bad')
      mkdirSync(bad)
      await unpackCase(join(import.meta.dirname, '..', 'fixtures', 'golden', `llama-gqa${packedSuffix}`), bad)
      const path = join(bad, 'golden.safetensors')
      const file = readFileSync(path)
      const { tensors } = await openTensorSource(path)
      file.writeFloatLE(file.readFloatLE(tensors.get('loss')!.offset) * 1.01, tensors.get('loss')!.offset)
      // A quantity that nothing computes, of the same length, so that the header stays as it is.
      const header = file.toString('latin1', 0, 60_000).replace('"lora_loss"', '"else_loss"')
      file.write(header.slice(0, 40_000), 0, 'latin1')
      writeFileSync(path, file)
      const wrong = await runProgram(['verify', bad, '--json'])
      assert.equal(wrong.code, 1)
      const { passed, results } = JSON.parse(wrong.stdout) as { passed: boolean; results: { name: string; verdict: string }[] }
      assert.equal(passed, false)
      assert.deepEqual(
        results.filter(({ verdict }) => verdict !== 'ok').map(({ name, verdict }) => [name, verdict]),
        [
          ['else_loss', 'missing'],
          ['loss', 'wrong'],
        ],
      )
      assert.equal((await runProgram(['verify', bad, '--skip', 'loss'])).code, 1)
      assert.equal((await runProgram(['verify', bad, '--skip', 'loss,else_loss'])).code, 0)
    })
  })
})

function contentOf(file: string): string {
  try {
    return readFileSync(file, 'latin1')
  } catch {
    return ''
  }
}
