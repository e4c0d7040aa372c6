import assert from 'node:assert/strict'
import { PassThrough } from 'node:stream'
import { UnslothError } from '#shared/errors.ts'
import type { GenerateParams } from '#shared/protocol.ts'
import { engineNotifications, engineRequests, protocolVersion } from '#shared/protocol.ts'
import { RpcConnection } from '../../../engine/rpc/connection.ts'
import type { EngineHandlers } from '../../../engine/rpc/serve.ts'
import { serve } from '../../../engine/rpc/serve.ts'

const generate: GenerateParams = { id: 'g', model: 'm', prompt: 'Once' }

describe('RPC between client and engine', () => {
  const open = (handlers: EngineHandlers) => {
    const [up, down] = [new PassThrough(), new PassThrough()]
    const ended = serve({ input: up, output: down }, handlers, { engineVersion: '1.2.3' })
    const client = new RpcConnection({ input: down, output: up }, 'the engine').listen()
    return { client, ended, up, down }
  }

  it('introduces the engine and names what it answers', async () => {
    const { client, ended } = open({ doctor: () => ({ checks: [] }) })
    const hello = await client.request(engineRequests.initialize, { protocolVersion, client: { name: 'test', version: '0' } })
    assert.deepEqual([hello.engineVersion, hello.pid, hello.methods], ['1.2.3', process.pid, ['initialize', 'engine/doctor']])
    await assert.rejects(
      client.request(engineRequests.initialize, { protocolVersion: 99, client: { name: 'test', version: '0' } }),
      (error) => UnslothError.is(error, 'INTERNAL') && error.message.includes('protocol 99') && error.hint !== undefined,
    )
    await assert.rejects(client.request(engineRequests.inspect, { path: '/x' }), /the engine does not know engine\/inspect/)
    client.close()
    await ended
  })

  it('carries errors with code and hint', async () => {
    const { client } = open({
      inspect: () => {
        throw new UnslothError('FILE_FORMAT', 'a.safetensors: truncated', { hint: 'Download it again.' })
      },
      doctor: () => Promise.reject(new TypeError('x is not a function')),
    })
    await assert.rejects(
      client.request(engineRequests.inspect, { path: 'a' }),
      (error) =>
        UnslothError.is(error, 'FILE_FORMAT') &&
        error.message === 'a.safetensors: truncated' &&
        error.hint === 'Download it again.',
    )
    await assert.rejects(
      client.request(engineRequests.doctor, {}),
      (error) => UnslothError.is(error, 'INTERNAL') && error.message.includes('not a function'),
    )
    client.close()
  })

  it('streams tokens in order before the result', async () => {
    const { client } = open({
      generate: ({ id }, { notify }) => {
        for (const text of ['a ', 'b ', 'c']) notify(engineNotifications.generated, { id, text, tokens: 1 })
        return { text: 'a b c', promptTokens: 1, newTokens: 3, stopReason: 'end', seconds: 0 }
      },
    })
    const pieces: string[] = []
    client.onNotification(engineNotifications.generated, ({ text }) => pieces.push(text))
    const { text } = await client.request(engineRequests.generate, generate)
    assert.equal(pieces.join(''), text)
    client.close()
  })

  it('cancels', async () => {
    let aborted = false
    const controller = new AbortController()
    const { client } = open({
      generate: (_params, { signal }) =>
        new Promise((_resolve, reject) => {
          signal.addEventListener('abort', () => {
            aborted = true
            reject(new UnslothError('STOPPED', 'stopped'))
          })
          controller.abort()
        }),
    })
    const answer = client.request(engineRequests.generate, generate, { signal: controller.signal })
    await assert.rejects(answer, (error) => UnslothError.is(error, 'STOPPED') && error.message.includes('cancelled'))
    assert.equal(aborted, true)
    await assert.rejects(client.request(engineRequests.generate, generate, { signal: AbortSignal.abort() }), (error) =>
      UnslothError.is(error, 'STOPPED'),
    )
    client.close()
  })

  it('ends when the client goes away, and aborts what was under way', async () => {
    let signal: AbortSignal | undefined
    const { client, ended } = open({
      generate: (_params, context) => {
        ;({ signal } = context)
        return new Promise(() => undefined)
      },
    })
    const answer = client.request(engineRequests.generate, generate)
    const refused = assert.rejects(
      answer,
      (error) => UnslothError.is(error, 'INTERNAL') && error.message.includes('has ended before it answered engine/generate'),
    )
    while (signal === undefined) await new Promise(setImmediate)
    client.close()
    await Promise.all([ended, refused])
    assert.equal(signal.aborted, true)
    await assert.rejects(client.request(engineRequests.doctor, {}), /has ended/)
  })

  it('rejects what waits when the engine dies', async () => {
    const { client, down } = open({ generate: () => new Promise(() => undefined) })
    const answer = client.request(engineRequests.generate, generate)
    down.end()
    await assert.rejects(answer, /the engine has ended before it answered/)
    await client.closed
    assert.equal(client.isClosed, true)
  })

  it('ends the connection on a stream that is not the protocol', async () => {
    const { ended, up } = open({})
    up.write('GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n')
    await ended
    const second = open({})
    second.up.write('Content-Length: 5\r\n\r\n{"a":')
    await second.ended
    assert.ok(second.client)
  })
})
