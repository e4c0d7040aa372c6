import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import net from 'node:net'
import { dirname, join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { connectToRun, withRun } from '../../../engine/run/controlClient.ts'
import type { ControlFile, RunControlHandlers } from '../../../engine/run/controlSocket.ts'
import { ControlSocket } from '../../../engine/run/controlSocket.ts'
import { RunDirectory } from '../../../engine/run/runDirectory.ts'
import { runtimeFolder, socketPathLimit } from '../../../engine/run/runtimeFolder.ts'
import { ownRuntimeFolder, temporaryFolder } from './support.ts'

describe('control socket', () => {
  const parent = temporaryFolder()
  ownRuntimeFolder(parent)
  const asked: unknown[] = []
  const handlersOf = (run: RunDirectory): RunControlHandlers => ({
    stop: (params) => {
      asked.push(['stop', params])
      return { state: 'saving', step: 3 }
    },
    pause: () => {
      throw new UnslothError('STOPPED', 'already stopping')
    },
    resume: () => ({ state: 'training', step: 3 }),
    status: () => run.reader().status(),
  })
  const open = async () => {
    const run = RunDirectory.create(parent, 'controlled', 'version: 1\n')
    return { run, socket: await ControlSocket.open(run.dir, handlersOf(run)) }
  }
  const controlFile = (run: RunDirectory): ControlFile => JSON.parse(fs.readFileSync(run.path('control'), 'utf8')) as ControlFile
  /** Sends text and waits to be cut. */
  const cut = (address: string, text: string): Promise<string> =>
    new Promise((resolve) => {
      const client = net.connect(address, () => client.write(text))
      let answer = ''
      client.on('data', (data: Buffer) => (answer += data.toString()))
      client.on('error', () => undefined)
      client.on('close', () => resolve(answer))
    })

  it('answers whoever knows the secret', async () => {
    const { run, socket } = await open()
    const control = await connectToRun(run.dir)
    assert.deepEqual(await control.stop({ save: true }), { state: 'saving', step: 3 })
    assert.deepEqual(asked, [['stop', { save: true }]])
    assert.equal((await control.status()).name, 'controlled')
    assert.equal((await control.resume()).state, 'training')
    await assert.rejects(control.pause(), (error) => UnslothError.is(error, 'STOPPED') && error.message === 'already stopping')
    const second = await withRun(run.dir, (other) => other.status())
    assert.equal(second.state, 'queued')
    await socket.close()
    await control.closed
    await assert.rejects(control.status(), /the run has ended/)
  })

  it('is private: 0700 folder, 0600 files, a short path that does not name the run', async () => {
    const { run, socket } = await open()
    const { address, secret } = controlFile(run)
    assert.equal(fs.statSync(dirname(address)).mode & 0o777, 0o700)
    assert.equal(fs.statSync(address).mode & 0o777, 0o600)
    assert.equal(fs.statSync(run.path('control')).mode & 0o777, 0o600)
    assert.ok(Buffer.byteLength(address) < socketPathLimit)
    assert.doesNotMatch(address, /controlled/)
    assert.match(secret, /^[0-9a-f]{64}$/)
    await socket.close()
    assert.equal(fs.existsSync(address), false)
    assert.equal(fs.existsSync(run.path('control')), false)
  })

  it('cuts everyone else without a word', async () => {
    const { run, socket } = await open()
    const { address, secret } = controlFile(run)
    const request = 'Content-Length: 60\r\n\r\n{"jsonrpc":"2.0","id":0,"method":"run/status","params":{}}   '
    const wrong = secret.replace(/^./, (digit) => (digit === '0' ? '1' : '0'))
    for (const text of [`${wrong}\n${request}`, `${secret}x${request}`, request.repeat(3), `\n${secret}\n${request}`]) {
      assert.equal(await cut(address, text), '')
    }
    assert.equal((await withRun(run.dir, (control) => control.status())).name, 'controlled')
    await socket.close()
  })

  it('takes the secret in pieces and the first message with it', async () => {
    const { run, socket } = await open()
    const { address, secret } = controlFile(run)
    const body = '{"jsonrpc":"2.0","id":7,"method":"run/resume","params":{}}'
    const answer = await new Promise<string>((resolve) => {
      const client = net.connect(address, () => {
        client.write(secret.slice(0, 10))
        setTimeout(() => client.write(`${secret.slice(10)}\nContent-Length: ${body.length}\r\n\r\n${body}`), 5)
      })
      client.once('data', (data: Buffer) => {
        resolve(data.toString())
        client.destroy()
      })
    })
    assert.match(answer, /"id":7,"result":\{"state":"training","step":3\}/)
    await socket.close()
  })

  it('listens again when its folder was swept away', async () => {
    const run = RunDirectory.create(parent, 'controlled', 'version: 1\n')
    const socket = await ControlSocket.open(run.dir, handlersOf(run), 50)
    const before = controlFile(run)
    fs.rmSync(runtimeFolder(), { recursive: true })
    while (controlFile(run).address === before.address) await new Promise((resolve) => setTimeout(resolve, 10))
    assert.equal((await withRun(run.dir, (control) => control.status())).name, 'controlled')
    await socket.close()
  })

  it('says why there is nobody to talk to', async () => {
    const run = RunDirectory.create(parent, 'gone', 'version: 1\n')
    const invalid =
      (pattern: RegExp) =>
      (error: unknown): boolean =>
        UnslothError.is(error, 'RUN_INVALID') && pattern.test(error.message)
    await assert.rejects(connectToRun(join(parent, 'none')), invalid(/not a run directory/))
    await assert.rejects(connectToRun(run.dir), invalid(/no process works on the run \(queued\)/))
    const writer = await run.lock()
    await assert.rejects(connectToRun(run.dir), invalid(/does not listen \(yet\)/))
    writer.begin()
    writer.setState('stopped')
    await writer.close()
    await assert.rejects(connectToRun(run.dir), invalid(/the run has ended \(stopped\)/))
    fs.writeFileSync(
      run.path('control'),
      JSON.stringify({
        host: 'h',
        machine: 'm',
        pid: 1,
        startTime: '',
        address: join(parent, 'no.sock'),
        secret: 'a'.repeat(64),
      }),
    )
    await assert.rejects(connectToRun(run.dir), invalid(/has ended/))
  })

  it('removes sockets that killed processes left', async () => {
    const path = join(runtimeFolder(), 'dead.sock')
    spawnSync(process.execPath, [
      '-e',
      `require('net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`,
    ])
    assert.equal(fs.existsSync(path), true)
    const { socket } = await open()
    assert.equal(fs.existsSync(path), false)
    assert.equal(fs.existsSync(socket.address), true)
    await socket.close()
  })

  it('uses the temp folder when the runtime folder is too deep for a socket', async () => {
    const before = process.env.UNSLOTH_RUNTIME_DIR
    process.env.UNSLOTH_RUNTIME_DIR = join(parent, 'x'.repeat(90))
    const { run, socket } = await open()
    process.env.UNSLOTH_RUNTIME_DIR = before
    assert.ok(socket.address.length < socketPathLimit)
    assert.equal((await withRun(run.dir, (control) => control.status())).name, 'controlled')
    await socket.close()
  })

  it('refuses a runtime folder of another kind', () => {
    const before = process.env.UNSLOTH_RUNTIME_DIR
    fs.symlinkSync('/tmp', join(parent, 'link'))
    process.env.UNSLOTH_RUNTIME_DIR = join(parent, 'link')
    try {
      assert.throws(
        () => runtimeFolder(),
        (error) => UnslothError.is(error, 'FILE_WRITE'),
      )
    } finally {
      process.env.UNSLOTH_RUNTIME_DIR = before
    }
  })
})
