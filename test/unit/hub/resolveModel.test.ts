import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { resolveModel } from '../../../engine/runtime/resolveModel.ts'
import { failure } from '../io/support.ts'
import { modelFiles, noise, useHub } from './support.ts'

const adapterConfig = (base: string, revision: string | null): string =>
  JSON.stringify({
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    base_model_name_or_path: base,
    revision,
    r: 4,
    lora_alpha: 8,
    lora_dropout: 0,
    target_modules: ['q_proj'],
    bias: 'none',
  })
const key = (part: string): string => `base_model.model.model.layers.0.self_attn.q_proj.lora_${part}.weight`

/** A safetensors file with the two matrices of an adapter. */
function adapterWeights(): Buffer {
  const header = Buffer.from(
    JSON.stringify({
      [key('A')]: { dtype: 'F32', shape: [4, 8], data_offsets: [0, 128] },
      [key('B')]: { dtype: 'F32', shape: [8, 4], data_offsets: [128, 256] },
    }),
  )
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(header.length))
  return Buffer.concat([length, header, Buffer.alloc(256)])
}

describe('the place of a model', () => {
  const hub = useHub()
  const weights = noise(3000)
  const official = 'meta-llama/Llama-3.2-1B'
  const copy = 'unsloth/Llama-3.2-1B'

  it('is the 16-bit repository that needs no licence, with a notice, unless the exact name or a revision is asked for', async () => {
    const commit = hub.server.push(official, modelFiles(noise(2000)))
    hub.server.push(copy, modelFiles(weights))
    const notices: string[] = []
    const resolve = (options: { exactName?: boolean; revision?: string } = {}) =>
      resolveModel(official, { settings: hub.settings(), onNotice: (notice) => notices.push(notice), ...options })
    assert.equal((await resolve()).hub?.id, copy)
    assert.match(notices.join(), /meta-llama\/Llama-3\.2-1B is loaded from unsloth\/Llama-3\.2-1B.*use_exact_model_name/)
    notices.length = 0
    assert.equal((await resolve({ revision: commit })).hub?.id, official)
    assert.deepEqual(notices, [])
  })

  it('is the named repository when that is in the cache already', async () => {
    hub.server.push(official, modelFiles(weights))
    hub.server.push(copy, modelFiles(weights))
    assert.equal((await resolveModel(official, { settings: hub.settings(), exactName: true })).hub?.id, official)
    assert.equal((await resolveModel(official, { settings: hub.settings() })).hub?.id, official)
    assert.equal((await resolveModel(`${copy}-bnb-4bit`, { settings: hub.settings() })).hub?.id, copy)
  })

  it('of an adapter is its base at the revision that the adapter names', async () => {
    const commit = hub.server.push('tiny/base', modelFiles(weights))
    hub.server.push('tiny/base', { ...modelFiles(weights), 'generation_config.json': '{"a":1}' })
    hub.server.push('tiny/adapter', {
      'adapter_config.json': adapterConfig('tiny/base', commit),
      'adapter_model.safetensors': adapterWeights(),
    })
    const found = await resolveModel('tiny/adapter', { settings: hub.settings() })
    assert.ok(found.folder.endsWith(commit))
    assert.ok(existsSync(`${found.adapter}/adapter_model.safetensors`))
    assert.equal(found.hub?.id, 'tiny/adapter')
  })

  it('is never looked for on the Hub when a path is meant', async () => {
    for (const name of ['./tiny/llama', '/tiny/llama', '../llama', 'tiny\\llama', '~/llama'])
      await assert.rejects(
        resolveModel(name, { settings: hub.settings() }),
        failure('FILE_NOT_FOUND', /no model at/, /Check the path/),
      )
    await assert.rejects(
      resolveModel('a/b/c', { settings: hub.settings() }),
      failure('FILE_NOT_FOUND', /no model at a\/b\/c/, /name on the Hub/),
    )
    assert.deepEqual(hub.server.take(), [])
    await assert.rejects(
      resolveModel('tiny/llama', { settings: hub.settings() }),
      failure('HUB', /There is no model tiny\/llama/, /no folder or file of that name/),
    )
  })
})
