import { strict as assert } from 'node:assert'
import { spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { commandNames } from '../../../engine/graph/commands.ts'
import { native } from '../../../engine/native.ts'
import { disposeDevices } from './command.ts'

const folder = dirname(fileURLToPath(import.meta.url))
const testFiles = readdirSync(folder)
  .filter((name) => name.endsWith('.test.ts') && name !== 'completeness.test.ts')
  .sort()

/** Runs the tests of this folder in a process that may use no more than one instruction set. */
function runWith(isa: string): Promise<{ status: number | null; output: string }> {
  const project = join(folder, '../../..')
  const mocha = join(project, 'node_modules/mocha/bin/mocha.js')
  const files = testFiles.map((name) => join(folder, name))
  const child = spawn(
    process.execPath,
    [mocha, '--no-config', '--import=tsx', '--timeout', '60000', '--reporter', 'dot', ...files],
    { cwd: project, env: { ...process.env, UNSLOTH_CPU_ISA: isa }, stdio: ['ignore', 'pipe', 'pipe'] },
  )
  let output = ''
  child.stdout.on('data', (data: Buffer) => (output += data.toString()))
  child.stderr.on('data', (data: Buffer) => (output += data.toString()))
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (status) => resolve({ status, output }))
  })
}

describe('every command', () => {
  after(disposeDevices)

  it('has a test under its own name', () => {
    const sources = testFiles.map((name) => readFileSync(join(folder, name), 'utf8')).join('\n')
    const untested = commandNames.filter((name) => !sources.includes(`describe('${name}', `))
    assert.deepEqual(untested, [])
  })

  const { avx2, avx512 } = native().describe().cpu
  const slower = [...(avx2 ? ['portable'] : []), ...(avx512 ? ['avx2'] : [])]
  for (const isa of slower)
    it(`passes on the ${isa} path of this processor, too`, async () => {
      const { status, output } = await runWith(isa)
      assert.equal(status, 0, output)
      assert.match(output, /\d{3} passing/)
    })
})
