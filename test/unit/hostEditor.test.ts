import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const runner = (name: string): string => fileURLToPath(new URL(`../host/runner/${name}`, import.meta.url))

interface Ended {
  readonly status: number
  readonly output: string
}

const node = (args: readonly string[], env: Readonly<Record<string, string>>): Promise<Ended> =>
  new Promise((resolve) => {
    execFile(process.execPath, args, { env: { ...process.env, ...env } }, (error, stdout, stderr) =>
      resolve({ status: typeof error?.code === 'number' ? error.code : error === null ? 0 : -1, output: stdout + stderr }),
    )
  })

describe('the editor that the tests run in', () => {
  let folder: string
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'unsloth-editor-'))
  })
  after(() => rmSync(folder, { recursive: true }))

  it('on the desktop route is VS Code itself, with the flags that @vscode/test-electron gives', async () => {
    const program = join(folder, 'code.mjs')
    const seen = join(folder, 'seen.json')
    writeFileSync(
      program,
      `import { writeFileSync } from 'node:fs'
writeFileSync(${JSON.stringify(seen)}, JSON.stringify([process.argv.slice(2), process.env.VSCODE_IPC_HOOK ?? null,
  process.env.UNSLOTH_HOST_RESULT]))
process.exitCode = 7\n`,
    )
    const flags = ['/work space', '--user-data-dir=/p', '--disable-workspace-trust', '--extensionTestsPath=/t.cjs']
    for (const trust of ['0', '1']) {
      const { status } = await node([runner('code.mjs'), ...flags], {
        UNSLOTH_HOST_EDITOR: JSON.stringify({ kind: 'desktop', command: [process.execPath, program] }),
        UNSLOTH_HOST_TRUST: trust,
        UNSLOTH_HOST_RESULT: '/r',
        VSCODE_IPC_HOOK: 'of another editor',
      })
      assert.equal(status, 7)
      const expected = flags.filter((flag) => trust === '0' || flag !== '--disable-workspace-trust')
      assert.deepEqual(JSON.parse(readFileSync(seen, 'utf8')), [expected, null, '/r'])
    }
  })

  it('is killed when it does not end', async () => {
    const program = join(folder, 'slow.mjs')
    writeFileSync(program, 'setInterval(() => {}, 1000)')
    const { status } = await node([runner('code.mjs')], {
      UNSLOTH_HOST_EDITOR: JSON.stringify({ kind: 'desktop', command: [process.execPath, program] }),
      UNSLOTH_HOST_TIMEOUT: '200',
    })
    assert.equal(status, 98)
  })

  it('is named, or nothing is tested', async () => {
    const { output } = await node(
      [
        '--input-type=module',
        '--eval',
        `import { missingEditor } from ${JSON.stringify(runner('editor.mjs'))}; console.log(await missingEditor())`,
      ],
      { UNSLOTH_EDITOR: 'emacs' },
    )
    assert.match(output, /UNSLOTH_EDITOR is emacs\. Use desktop or code-server\./)
  })
})
