import assert from 'node:assert/strict'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { engineNotifications, engineRequests, protocolVersion } from '#shared/protocol.ts'
import { RpcConnection } from '../../engine/rpc/connection.ts'
import { makeRecipe, ownRuntimeFolder, startProgram, starter, temporaryFolder, train } from './support.ts'

describe('`unsloth serve` over its pipes', function () {
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)
  let engine: ReturnType<typeof startProgram>
  let client: RpcConnection

  before(() => {
    engine = startProgram(['serve'])
    client = new RpcConnection({ input: engine.child.stdout!, output: engine.child.stdin! }, 'the engine').listen()
  })

  it('introduces itself', async () => {
    const hello = await client.request(engineRequests.initialize, { protocolVersion, client: { name: 'test', version: '0' } })
    assert.equal(hello.pid, engine.child.pid)
    for (const method of [
      'engine/plan',
      'engine/inspect',
      'engine/generate',
      'engine/verify',
      'engine/doctor',
      'engine/devices',
      'engine/preview',
    ])
      assert.ok(hello.methods.includes(method), method)
  })

  it('plans a recipe: exact memory part by part, steps, patches', async () => {
    makeRecipe(folder)
    const recipe = `version: 1\nmodel: ${starter}\ndata:\n  local_dataset: fables.jsonl\ntraining:\n  max_steps: 7\n  max_seq_length: 256\n  batch_size: 2\n  gradient_accumulation_steps: 3\n`
    const { diagnostics, summary, resolved } = await client.request(engineRequests.plan, {
      recipe,
      path: join(folder, 'finetune.yaml'),
      overrides: { 'lora.lora_r': 8 },
    })
    assert.deepEqual(diagnostics, [])
    assert.match(resolved!, /lora_r: 8/)
    const { memory, steps, model, patches } = summary!
    assert.equal(
      memory.parts.reduce((sum, { bytes }) => sum + bytes, 0),
      memory.totalBytes,
    )
    assert.deepEqual(
      memory.parts.map(({ name }) => name),
      ['frozen weights', 'adapters', 'gradients', 'optimizer', 'activations', 'batch', 'kernel scratch'],
    )
    assert.deepEqual([steps.total, steps.samples, steps.effectiveBatch], [7, 24, 6])
    assert.deepEqual([model.architecture, model.layers], ['llama', 5])
    assert.match(patches[0]!, /^patched 5 layers: 5 fused QKV, 5 O, 5 MLP/)
  })

  it('tells what is wrong with a recipe and where', async () => {
    const { diagnostics, summary } = await client.request(engineRequests.plan, {
      recipe: 'version: 1\nmodel: m\ndata:\n  local_datset: x.jsonl\n',
      path: join(folder, 'bad.yaml'),
    })
    assert.equal(summary, undefined)
    const wrong = diagnostics.find(({ message }) => message.includes('local_datset'))!
    assert.deepEqual([wrong.severity, wrong.line, wrong.column], ['error', 4, 3])
    assert.match(JSON.stringify(wrong), /local_dataset/)
    const missing = await client.request(engineRequests.plan, {
      recipe: `version: 1\nmodel: ${starter}\ndata:\n  local_dataset: nothing.jsonl\n`,
      path: join(folder, 'bad.yaml'),
    })
    assert.match(missing.diagnostics.map(({ message }) => message).join('\n'), /nothing\.jsonl/)
  })

  it('tells the devices with their free memory', async () => {
    const { devices } = await client.request(engineRequests.devices, {})
    const cpu = devices.at(-1)!
    assert.equal(cpu.id, 'cpu')
    assert.ok(cpu.label !== '' && cpu.freeBytes! > 0 && cpu.freeBytes! <= cpu.totalBytes, JSON.stringify(cpu))
    assert.ok(devices.slice(0, -1).every(({ id, totalBytes }) => /^cuda:\d+$/.test(id) && totalBytes > 0))
  })

  it('inspects a model folder', async () => {
    const found = await client.request(engineRequests.inspect, { path: starter, limit: 3 })
    assert.equal(found.kind, 'model')
    assert.equal(found.tensors.length, 3)
    assert.equal(found.tensorCount, 47)
    await assert.rejects(
      client.request(engineRequests.inspect, { path: join(folder, 'nothing') }),
      (error) => UnslothError.is(error) && error.message.includes('nothing'),
    )
  })

  it('streams text; base and adapter answer from one model', async () => {
    const adapter = join(await train(makeRecipe(folder, { training: { max_steps: 10, learning_rate: 1e-2 } })), 'adapter')
    const pieces = new Map<string, string>()
    client.onNotification(engineNotifications.generated, ({ id, text }) => pieces.set(id, (pieces.get(id) ?? '') + text))
    const ask = (id: string, tuned: boolean) =>
      client.request(engineRequests.generate, {
        id,
        model: starter,
        prompt: 'Once upon a time',
        ...(tuned ? { adapter } : {}),
        sampling: { temperature: 0, repetitionPenalty: 1, maxNewTokens: 20 },
      })
    const [base, tuned, again] = await Promise.all([ask('a', false), ask('b', true), ask('c', false)])
    assert.equal(pieces.get('a'), base.text)
    assert.equal(pieces.get('b'), tuned.text)
    assert.equal(base.text, again.text)
    assert.notEqual(base.text, tuned.text)
    assert.deepEqual([base.newTokens, base.stopReason], [20, 'length'])
    const order: boolean[] = []
    client.onNotification(engineNotifications.generated, ({ base: ofBase = false }) => order.push(ofBase))
    const sampling = { temperature: 0, repetitionPenalty: 1, maxNewTokens: 20 }
    const both = await client.request(engineRequests.generate, {
      id: 'both',
      model: starter,
      prompt: 'Once upon a time',
      adapter,
      withBase: true,
      sampling,
    })
    assert.deepEqual([both.text, both.base!.text], [tuned.text, base.text])
    assert.ok(
      order.indexOf(true) < order.lastIndexOf(false) && order.indexOf(false) < order.lastIndexOf(true),
      'neither waits for the other',
    )
    await assert.rejects(
      client.request(engineRequests.generate, { id: 'f', model: starter, prompt: 'Once', withBase: true }),
      /nothing to show beside/,
    )
  })

  it('cancels', async () => {
    const abort = new AbortController()
    client.onNotification(engineNotifications.generated, () => abort.abort())
    const answer = client.request(
      engineRequests.generate,
      { id: 'd', model: starter, prompt: 'Once', sampling: { maxNewTokens: 400, temperature: 1 } },
      { signal: abort.signal },
    )
    const ended = await answer.then(
      ({ stopReason }) => stopReason,
      (error: unknown) => (UnslothError.is(error, 'STOPPED') ? 'cancelled' : String(error)),
    )
    assert.equal(ended, 'cancelled')
    const next = await client.request(engineRequests.generate, {
      id: 'e',
      model: starter,
      prompt: 'Once',
      sampling: { maxNewTokens: 2 },
    })
    assert.equal(next.newTokens, 2)
  })

  it('ends when its client ends', async () => {
    engine.child.stdin!.end()
    const { code, signal } = await engine.ended
    assert.deepEqual([code, signal], [0, null])
  })
})
