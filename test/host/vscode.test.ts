import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { listRuns } from '../../engine/run/runReader.ts'
import { stagePackage } from '../../tools/package.mjs'
import { bundleSuite } from './runner/bundleSuite.mjs'
import { runSuite, type HostTestResult } from './runner/runSuite.mjs'
import { fillWorkspace } from './workspace.ts'

/** Makes one test here of each test that ran inside the editor. */
function adopt(suite: Mocha.Suite, results: readonly HostTestResult[]): void {
  for (const { title, passed, error } of results) {
    suite.addTest(
      new (suite.tests[0]!.constructor as typeof Mocha.Test)(title.join(' '), () => {
        if (!passed) assert.fail(error ?? 'failed')
      }),
    )
  }
}

/** Ends what a failed test left running. */
async function killRuns(folder: string): Promise<void> {
  for (const { alive, heartbeat } of await listRuns(join(folder, 'outputs'))) if (alive) process.kill(heartbeat!.pid, 'SIGKILL')
}

/** With UNSLOTH_HOST_WINDOWS=main,roots only those windows are opened. */
const wanted = process.env.UNSLOTH_HOST_WINDOWS?.split(',')

describe('in a real VS Code', function () {
  this.timeout(3_600_000)
  const all: HostTestResult[] = []
  const folders: string[] = []
  let place: string | undefined
  let disk: string | undefined

  const folder = (...names: string[]): string => {
    const path = join(place!, ...names)
    mkdirSync(path, { recursive: true })
    fillWorkspace(path)
    folders.push(path)
    return path
  }

  /** A file system of 1 MB where this may mount one; otherwise none, and the test's processes get a limit on the size of files. */
  const smallDisk = (): string => {
    const path = join(place!, 'small')
    mkdirSync(path)
    // UNSLOTH_HOST_NO_MOUNT=1 tries the way of those who may not.
    if (
      process.env.UNSLOTH_HOST_NO_MOUNT !== '1' &&
      spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', path]).status === 0
    )
      disk = path
    return disk ?? ''
  }

  before(async function () {
    // What is tested is what is packed.
    const extension = await stagePackage()
    const tests = await bundleSuite(extension)
    place = mkdtempSync(join(tmpdir(), 'unsloth-workspaces-'))
    const windows: Readonly<Record<string, () => Promise<readonly HostTestResult[]>>> = {
      main: () => runSuite({ opened: folder('main'), extension, tests, phases: ['main'] }),
      reload: () => runSuite({ opened: folder('reload'), extension, tests, phases: ['reload', 'reloaded'] }),
      untrusted: () => runSuite({ opened: folder('untrusted'), extension, tests, phases: ['untrusted'], trust: true }),
      roots: () => {
        const file = join(place!, 'several.code-workspace')
        writeFileSync(file, JSON.stringify({ folders: ['one', 'two'].map((name) => ({ path: folder(name) })) }))
        return runSuite({ opened: file, extension, tests, phases: ['roots'] })
      },
      badThings: () =>
        runSuite({
          opened: folder('bad'),
          extension,
          tests,
          phases: ['badThings'],
          env: { UNSLOTH_HOST_SMALL_DISK: smallDisk() },
        }),
      two: async () => {
        const opened = folder('shared')
        return (
          await Promise.all(['watcher', 'starter'].map((phase) => runSuite({ opened, extension, tests, phases: [phase] })))
        ).flat()
      },
    }
    for (const [name, open] of Object.entries(windows)) if (wanted?.includes(name) ?? true) all.push(...(await open()))
    adopt(this.test!.parent!, all)
  })

  after(async () => {
    for (const path of folders) await killRuns(path)
    if (disk !== undefined) spawnSync('umount', [disk])
    if (place !== undefined) rmSync(place, { recursive: true, force: true, maxRetries: 5 })
  })

  it('every window ran its tests', () => {
    assert.ok(all.length > (wanted === undefined ? 40 : 0), `${all.length} tests`)
  })
})
