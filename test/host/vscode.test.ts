import assert from 'node:assert/strict'
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { listRuns } from '../../engine/run/runReader.ts'
import { Host, type HostTestResult } from './runner/host.mjs'
import { fillWorkspace } from './workspace.ts'
import { bundleSuite } from './runner/bundleSuite.mjs'
import { stagePackage } from '../../tools/package.mjs'

/** Makes one test here of each test that ran inside the editor. */
function adopt(suite: Mocha.Suite, results: readonly HostTestResult[]): void {
  for (const { title, passed, error } of results) {
    suite.addTest(new (suite.tests[0]!.constructor as typeof Mocha.Test)(title.join(' '), () => {
      if (!passed) assert.fail(error ?? 'failed')
    }))
  }
}

/** Ends what a failed test left running. */
async function killRuns(workspace: string): Promise<void> {
  for (const { alive, heartbeat } of await listRuns(join(workspace, 'outputs'))) if (alive) process.kill(heartbeat!.pid, 'SIGKILL')
}

describe('in a real VS Code', function () {
  this.timeout(600_000)
  let tests: string
  let trusting: Host | undefined
  const all: HostTestResult[] = []
  const folders: string[] = []

  before(async function () {
    // What is tested is what is packed.
    const extension = await stagePackage()
    tests = await bundleSuite(extension)
    trusting = await Host.start()
    const workspace = trusting.makeFolder('workspace')
    fillWorkspace(workspace)
    folders.push(workspace)
    const phase = async (name: string, page?: Page) => {
      const { results, page: window } = await trusting!.runTests({
        workspace, extension, tests, env: { UNSLOTH_HOST_PHASE: name }, ...(page === undefined ? {} : { page }),
      })
      assert.ok(results.length > 0, `no test ran in the window "${name}"`)
      all.push(...results)
      return window
    }
    const page = await phase('main')
    await page.close()
    await phase('reloaded', await phase('reload'))
    const untrusted = await Host.start({ trust: true })
    try {
      const folder = untrusted.makeFolder('workspace')
      fillWorkspace(folder)
      const { results } = await untrusted.runTests({ workspace: folder, extension, tests, env: { UNSLOTH_HOST_PHASE: 'untrusted' } })
      all.push(...results)
    } finally {
      await untrusted.stop()
    }
    adopt(this.test!.parent!, all)
  })

  after(async () => {
    for (const folder of folders) await killRuns(folder)
    await trusting?.stop()
  })

  it('every window ran its tests', () => {
    assert.ok(all.length > 20, `${all.length} tests`)
  })
})
