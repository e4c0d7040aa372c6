import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { projectRoot } from '../../engine/projectRoot.ts'
import { temporaryFolder } from './support.ts'

interface Measured {
  readonly planned: number
  readonly before: number
  readonly peak: number
  readonly parts: readonly { readonly name: string; readonly bytes: number }[]
  readonly losses: readonly number[]
}

describe('memory', function () {
  const folder = temporaryFolder()
  const child = join(folder, 'memoryOfStep.mjs')

  before(async () => {
    await build({
      entryPoints: [fileURLToPath(new URL('children/memoryOfStep.ts', import.meta.url))],
      outfile: child,
      bundle: true,
      platform: 'node',
      format: 'esm',
      target: 'node20',
      logLevel: 'silent',
      banner: { js: "import { createRequire as r } from 'node:module'; const require = r(import.meta.url);" },
    })
  })

  async function measure(...args: readonly string[]): Promise<Measured> {
    const env = {
      ...process.env,
      UNSLOTH_ADDON: process.env.UNSLOTH_ADDON ?? join(projectRoot(), 'build', 'cpu', 'kernels.node'),
    }
    const started = spawn(process.execPath, [child, ...args], { env, stdio: ['ignore', 'pipe', 'inherit'] })
    let text = ''
    started.stdout.setEncoding('utf8').on('data', (piece: string) => (text += piece))
    const code = await new Promise((resolve) => started.once('close', resolve))
    assert.equal(code, 0, text)
    return JSON.parse(text) as Measured
  }

  for (const [what, ...args] of [
    ['a LoRA step', 'qwen2.5-0.5b', '384', '12', 'lora', '1'],
    ['a full fine-tuning step', 'qwen2.5-0.5b', '128', '1', 'full', '2'],
  ])
    it(`${what}: the peak above the start is within 5 % of the plan`, async () => {
      const { planned, before, peak, parts, losses } = await measure(...args)
      const used = peak - before
      console.log(
        `      planned ${(planned / 2 ** 20).toFixed(0)} MiB, used ${(used / 2 ** 20).toFixed(0)} MiB (${(100 * (used / planned - 1)).toFixed(1)} %)`,
      )
      assert.ok(planned >= 1e9, `the plan has only ${planned} bytes`)
      assert.ok(
        Math.abs(used / planned - 1) <= 0.05,
        `planned ${planned}, used ${used}: ${parts.map(({ name, bytes }) => `${name} ${bytes}`).join(', ')}`,
      )
      if (losses.length > 1) assert.ok(losses.at(-1)! < losses[0]!)
    })
})
