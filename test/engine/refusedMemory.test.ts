import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { UnslothError } from '#shared/errors.ts'
import { projectRoot } from '../../engine/projectRoot.ts'
import { holders, refusedMemory } from '../../engine/runtime/refusedMemory.ts'
import { createRun, makeRecipe, ownRuntimeFolder, temporaryFolder } from './support.ts'

const child = fileURLToPath(new URL('children/refusedMemory.ts', import.meta.url))
const mebibyte = 2 ** 20

describe('memory that is gone when a run takes it', function () {
  this.timeout(60_000)
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)

  /** A run that needs four times 90 MB for its adapters, in a process that gets 250 MB in its first attempts; warnings of such plans. */
  async function run(
    attempts: number,
    checkpointing: string,
  ): Promise<{ dir: string; ending: string; prepared: number; warnings: readonly string[] }> {
    const recipe = makeRecipe(folder, {
      training: { max_steps: 1, batch_size: 1, max_seq_length: 16, gradient_checkpointing: checkpointing, device: 'cpu' },
      lora: {
        lora_r: 4096,
        lora_alpha: 4096,
        target_modules: ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'],
      },
    })
    const { dir } = createRun(recipe)
    const { stdout } = await promisify(execFile)(
      process.execPath,
      ['--import', 'tsx', child, dir, String(250 * mebibyte), String(attempts)],
      { cwd: projectRoot() },
    )
    const { warnings, ...rest } = JSON.parse(stdout) as { ending: string; prepared: number; warnings: string[] }
    return { dir, ...rest, warnings: warnings.filter((text) => text.includes('planned again')) }
  }

  it('fails with what is free and what to do, and leaves nothing half-written', async () => {
    const { dir, ending, prepared } = await run(1, 'full')
    assert.match(
      ending,
      /^The system has no 9\d\.\d MB of memory left for the optimizer; [\d.]+ [MG]B are free now\. .*\n.*training\.max_memory/s,
    )
    assert.equal(prepared, 1)
    const left = readdirSync(dir, { recursive: true }).map(String)
    assert.ok(!left.some((name) => /safetensors|partial|\.tmp-|\.new-|\.old-/.test(name)), left.join())
    assert.ok(!existsSync(join(dir, 'adapter')))
  })

  it('is planned for again where the plan is auto, once', async () => {
    const failed = await run(2, 'auto')
    assert.deepEqual([failed.prepared, failed.warnings.length], [2, 1])
    assert.match(failed.ending, /^The system has no /)
    const { dir, ending, prepared, warnings } = await run(1, 'auto')
    assert.deepEqual([ending, prepared], ['finished', 2])
    assert.match(warnings.join(), /^The system has no .* planned again with what is free now\.$/)
    assert.ok(existsSync(join(dir, 'adapter', 'adapter_model.safetensors')))
  })

  it('names who holds a GPU, and what to set when the host locks nothing', () => {
    assert.equal(
      holders({
        others: [
          { pid: process.pid, bytes: 3 * 2 ** 30 },
          { pid: 2 ** 30, bytes: 20 * 2 ** 30 },
        ],
      }).replace(/ \(.+?\)/, ' (it)'),
      `; process ${2 ** 30} holds 20.0 GB; process ${process.pid} (it) holds 3.0 GB`,
    )
    const cause = Object.assign(new Error('The system did not lock 4096 bytes of its memory for the GPU (x).'), {
      code: 'MEMORY',
    })
    const error = refusedMemory(cause, { kind: 'cuda', index: 0 }, { bytes: 4096, place: 'host', what: 'offloaded activations' })
    assert.ok(UnslothError.is(error, 'MEMORY'))
    assert.match(error.message, /did not lock 4096 bytes .* They are for offloaded activations\.$/)
    assert.match(error.hint!, /offload_embedding.*gradient_checkpointing: full/)
    const gpu = refusedMemory(
      Object.assign(new Error('no'), { code: 'MEMORY' }),
      { kind: 'cuda', index: 1 },
      { bytes: 2 ** 30, place: 'device', what: 'frozen weights' },
    )
    assert.match(gpu.message, /^GPU 1 has no 1\.0 GB of memory left for frozen weights/)
    assert.match(gpu.hint!, /training\.device: cuda:N/)
    assert.equal(
      refusedMemory(
        Object.assign(new Error('odd'), { code: 'GPU' }),
        { kind: 'cuda', index: 0 },
        { bytes: 1, place: 'device', what: 'x' },
      ).code,
      'GPU',
    )
  })
})
