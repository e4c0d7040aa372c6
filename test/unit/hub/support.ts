import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { HubSettings } from '../../../engine/hub/settings.ts'
import { HubServer } from './hubServer.ts'

export interface TestHub {
  readonly server: HubServer
  /** A new cache folder for each test. */
  readonly cache: string
  settings(changes?: Partial<HubSettings>): HubSettings
}

/** A Hub on the loopback interface and an empty cache for each test of a describe block. */
export function useHub(): TestHub {
  const hub = { server: new HubServer(), cache: '' }
  beforeEach(async () => {
    hub.server = new HubServer()
    await hub.server.start()
    hub.cache = mkdtempSync(join(tmpdir(), 'unsloth-hub-'))
  })
  afterEach(() => {
    hub.server.stop()
    rmSync(hub.cache, { recursive: true, force: true })
  })
  return {
    get server() {
      return hub.server
    },
    get cache() {
      return hub.cache
    },
    settings: (changes = {}) => ({
      endpoint: hub.server.endpoint,
      cache: hub.cache,
      offline: false,
      token: undefined,
      stallTimeout: 5000,
      retryDelay: 2,
      ...changes,
    }),
  }
}

/** Bytes that repeat nothing in a simple way. */
export function noise(bytes: number, seed = 1): Buffer {
  const data = Buffer.alloc(bytes)
  let state = seed
  for (let at = 0; at < bytes; at++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    data[at] = state >>> 24
  }
  return data
}

export const config = JSON.stringify({ architectures: ['LlamaForCausalLM'], model_type: 'llama' })

/** The files of a small model, with the same weights in formats that are not needed. */
export const modelFiles = (weights: Buffer) => ({
  'config.json': config,
  'generation_config.json': '{}',
  'tokenizer.json': '{"version":"1.0"}',
  'tokenizer_config.json': '{}',
  'README.md': '# Model',
  '.gitattributes': '',
  'model.safetensors': weights,
  'pytorch_model.bin': weights,
  'model.Q4_K_M.gguf': weights,
  'original/consolidated.00.pth': weights,
  'onnx/model.onnx': weights,
})
