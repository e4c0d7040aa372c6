import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { fetchModel } from '../../../engine/hub/modelFiles.ts'
import { sha256 } from './hubServer.ts'
import { modelFiles, noise, useHub } from './support.ts'

const weights = noise(400_000)
const program = fileURLToPath(new URL('children/fetchModel.ts', import.meta.url))

describe('several processes that fetch from the Hub', () => {
  const hub = useHub()

  /** A process that fetches tiny/llama with the settings of its environment. */
  function start() {
    const env = {
      ...process.env,
      HF_ENDPOINT: hub.server.endpoint,
      HF_HUB_CACHE: hub.cache,
      HF_HOME: hub.cache,
      HF_TOKEN: '',
      HF_HUB_OFFLINE: '',
    }
    const child = spawn(process.execPath, ['--import', 'tsx', program, 'tiny/llama'], { env, stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    let errors = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text))
    child.stderr.setEncoding('utf8').on('data', (text: string) => (errors += text))
    const ended = new Promise<{ code: number | null; output: string; errors: string }>((resolve) =>
      child.once('close', (code) => resolve({ code, output: output.trim(), errors })),
    )
    return { child, ended }
  }

  const weightRequests = () => hub.server.asked.filter(({ host, url }) => host === 'storage' && url.includes('model.safetensors'))

  async function until(look: () => boolean): Promise<void> {
    const deadline = performance.now() + 30_000
    while (!look()) {
      if (performance.now() > deadline) throw new Error('waited in vain')
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
  }

  it('fetch each file once between them', async () => {
    hub.server.push('tiny/llama', modelFiles(weights))
    const both = await Promise.all([start(), start()].map(({ ended }) => ended))
    for (const { code, output, errors } of both) {
      assert.equal(code, 0, errors)
      assert.ok(readFileSync(join(output, 'model.safetensors')).equals(weights))
    }
    assert.equal(weightRequests().length, 1)
  })

  it('take over from one that was killed, where it was', async () => {
    hub.server.push('tiny/llama', modelFiles(weights))
    hub.server.faults.push({ host: 'storage', path: 'model.safetensors', stallAfter: 150_000 })
    const partial = join(hub.cache, 'models--tiny--llama', 'blobs', `${sha256(weights)}.unsloth.incomplete`)
    const { child, ended } = start()
    await until(() => statSync(partial, { throwIfNoEntry: false })?.size === 150_000)
    child.kill('SIGKILL')
    await ended
    const { folder } = await fetchModel('tiny/llama', null, { settings: hub.settings() })
    assert.ok(readFileSync(join(folder, 'model.safetensors')).equals(weights))
    assert.deepEqual(
      weightRequests().map(({ range }) => range),
      [undefined, 'bytes=150000-'],
    )
  })
})
