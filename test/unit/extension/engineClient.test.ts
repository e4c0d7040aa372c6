import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { UnslothError } from '#shared/errors.ts'
import { engineRequests } from '#shared/protocol.ts'
import { DeviceWatch } from '../../../src/engine/deviceWatch.ts'
import { tokenProblem } from '../../../src/engine/hubToken.ts'
import { EngineClient } from '../../../src/engine/engineClient.ts'
import type { EngineState } from '../../../src/engine/lifecycle.ts'
import { restartPolicy } from '../../../src/engine/restartPolicy.ts'

const entry = fileURLToPath(new URL('./fakeEngine.mjs', import.meta.url))

describe('the engine client', () => {
  const clients: EngineClient[] = []
  const start = (
    options: {
      fake?: string
      restarts?: number
      idle?: number
      locate?: () => never
      secrets?: Readonly<Record<string, string>>
    } = {},
  ) => {
    const log: string[] = []
    const states: EngineState['kind'][] = []
    const client = new EngineClient({
      locate: options.locate ?? (() => ({ execPath: process.execPath, entry, env: { FAKE_ENGINE: options.fake ?? '' } })),
      version: '0',
      cwd: process.cwd(),
      log: (line) => log.push(line),
      policy: restartPolicy(options.restarts ?? 0, 60_000, 10),
      ...(options.idle === undefined ? {} : { idleTimeout: options.idle }),
      secrets: () => Promise.resolve(options.secrets ?? {}),
    })
    client.onDidChangeState(({ kind }) => states.push(kind))
    clients.push(client)
    return { client, log, states }
  }
  const until = async (what: string, check: () => boolean): Promise<void> => {
    for (const end = Date.now() + 60_000; !check();) {
      if (Date.now() > end) assert.fail(`waited for ${what}`)
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
  }
  afterEach(async () => {
    await Promise.all(clients.splice(0).map((client) => client.stop()))
  })

  it('starts with the first request and once for several', async () => {
    const { client, states } = start()
    assert.equal(client.state.kind, 'idle')
    const answers = await Promise.all([client.request(engineRequests.doctor, {}), client.request(engineRequests.doctor, {})])
    assert.deepEqual(answers, [{ checks: [] }, { checks: [] }])
    assert.equal(states.filter((kind) => kind === 'starting').length, 1)
    await client.stop()
    assert.equal(client.state.kind, 'idle')
  })

  it('tells what the process said when it cannot start', async () => {
    const { client } = start({ fake: 'broken' })
    await assert.rejects(
      client.request(engineRequests.doctor, {}),
      (error) => UnslothError.is(error, 'NATIVE') && /exit code 3.*Cannot find module kernels\.node/s.test(error.message),
    )
    assert.equal(client.state.kind, 'crashed')
  })

  it('tells why it may not start, and asks again at the next request', async () => {
    let asked = 0
    const { client } = start({
      locate: () => {
        asked++
        throw new UnslothError('USAGE', 'not trusted')
      },
    })
    await assert.rejects(client.request(engineRequests.doctor, {}), /not trusted/)
    await assert.rejects(client.request(engineRequests.doctor, {}), /not trusted/)
    assert.equal(asked, 2)
  })

  it('starts a process that died again, as often as the policy says', async () => {
    const { client, log, states } = start({ restarts: 1 })
    await assert.rejects(client.request(engineRequests.plan, { recipe: '' }), /has ended before it answered/)
    await until('the restart', () => states.includes('crashed') && client.state.kind === 'running')
    assert.ok(log.includes('about to die'))
    assert.deepEqual(await client.request(engineRequests.doctor, {}), { checks: [] })
    await assert.rejects(client.request(engineRequests.plan, { recipe: '' }))
    await until('the crash', () => client.state.kind === 'crashed')
    assert.equal(client.state.kind === 'crashed' && client.state.retryAt, undefined)
    assert.equal(states.filter((kind) => kind === 'starting').length, 2)
    // A person who asks gets another one.
    assert.deepEqual(await client.request(engineRequests.doctor, {}), { checks: [] })
  })

  it('ends the process when nobody asks any more', async () => {
    const { client } = start({ idle: 20 })
    await client.request(engineRequests.doctor, {})
    await until('the end', () => client.state.kind === 'idle')
  })

  it('gives secrets to the process alone', async () => {
    const { client, log } = start({ secrets: { HF_TOKEN: 'hf_somethingSecret' } })
    const { devices } = await client.request(engineRequests.devices, {})
    assert.equal(devices[0]!.label, 'hf_somethingSecret')
    const pid = client.state.kind === 'running' ? client.state.pid : 0
    assert.ok(!readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('hf_'))
    assert.ok(!log.join('\n').includes('hf_'), log.join('\n'))
  })

  it('knows the devices while an engine runs, and does not keep it awake to know them', async () => {
    const { client } = start({ idle: 60 })
    const watch = new DeviceWatch(client)
    const told: (number | undefined)[] = []
    watch.onDidChange((devices) => told.push(devices?.length))
    assert.equal(await client.peek(engineRequests.devices, {}), undefined)
    assert.equal(client.state.kind, 'idle')
    await client.request(engineRequests.doctor, {})
    await until('the devices', () => watch.devices?.[0]?.totalBytes === 2)
    await until('the end', () => client.state.kind === 'idle')
    assert.deepEqual(told, [1, undefined])
    watch.dispose()
  })

  it('takes for tokens what may be one', () => {
    assert.deepEqual(['hf_0123456789', '', 'hf a b c d e f', 'hf'].map(tokenProblem), [undefined, undefined, 'spaces', 'short'])
  })
})
