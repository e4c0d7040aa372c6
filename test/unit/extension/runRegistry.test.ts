import assert from 'node:assert/strict'
import { UnslothError } from '#shared/errors.ts'
import { RunDirectory } from '../../../engine/run/runDirectory.ts'
import { RunRegistry } from '../../../src/engine/runRegistry.ts'
import { ownRuntimeFolder, temporaryFolder } from '../run/support.ts'

describe('the registry of runs', () => {
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)

  /** A process that begins to work and fails at once. */
  const failAtOnce = async (run: RunDirectory, message: string): Promise<void> => {
    const writer = await run.lock()
    writer.begin('preparing')
    writer.fail(new UnslothError('DATA', message))
    await writer.close()
  }

  it('tells each end once, also of a process that came and went between two looks', async () => {
    const run = RunDirectory.create(folder, 'run', 'version: 1\n')
    const registry = new RunRegistry({ find: () => Promise.resolve([run.dir]) })
    const told: (string | undefined)[] = []
    registry.onDidEnd(({ view }) => told.push(view.status.error?.message))
    try {
      await failAtOnce(run, 'before anyone looked')
      await registry.refresh()
      assert.equal(registry.get(run.dir)?.state, 'failed')
      assert.deepEqual(told, [], 'an old end is no news')
      await failAtOnce(run, 'own.jsonl is gone')
      await registry.follow(run.dir)
      await registry.follow(run.dir)
      assert.deepEqual(told, ['own.jsonl is gone'])
    } finally {
      registry.dispose()
    }
  })
})
