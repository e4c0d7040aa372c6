import { strict as assert } from 'node:assert'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Compute } from '../../engine/graph/target.ts'
import type { Quantisation } from '../../engine/runtime/quantisedWeights.ts'
import type { DeviceChoice } from '../../engine/runtime/runtime.ts'
import { compare } from '../../engine/verify/compare.ts'
import { CaseComputation } from '../../engine/verify/compute.ts'
import { Golden } from '../../engine/verify/golden.ts'
import { packedCases, packedSuffix, unpackCase } from './packedCase.ts'

const fixtures = join(import.meta.dirname, '../fixtures/golden')

/** The packed cases. Listed here, so that a case that gets lost is a failure. */
export const caseNames = [
  'llama',
  'llama-rope-llama3',
  'llama-rope-linear',
  'llama-dynamic',
  'llama-gqa',
  'llama-bias',
  'llama-embed',
  'llama-rslora',
  'mistral',
  'mistral-nemo',
  'mistral-300',
  'qwen2',
  'qwen2-rope-yarn',
  'qwen3',
  'tiny-gemma',
  'tiny-gemma2',
  'tiny-gemma3',
  'tiny-phi3',
  'tiny-phi3-short',
  'tiny-phi3-long',
  'tiny-cohere',
  'tiny-cohere2',
  'tiny-granite',
  'tiny-olmo2',
  'tiny-olmo3',
  'tiny-smollm3',
  'tiny-mixtral',
  'tiny-mixtral-down',
  'tiny-mixtral-stacked',
  'tiny-qwen3-moe',
  'tiny-granite-moe',
  'tiny-glm4',
  'tiny-seed-oss',
  'tiny-ernie',
  'tiny-starcoder2',
  'tiny-stablelm',
  'olmo',
  'phi',
  'gpt-neox',
  'gpt2',
  'falcon',
  'qwen2-moe',
  'dora',
  'dora-bias',
  'dora-fused',
  'dora-granite',
  'dora-grouped',
  'dora-nf4',
  'lora-options',
  'lora-bias',
  'lora-starts',
]

/** The weights of cases named -nf4 are numbers that NF4 has: quantised, they must give what they gave PEFT. */
export const nf4: Quantisation = { kind: 'load', type: 'nf4', nested: false }

/** Every packed case in a folder of its own, inside a temporary one. */
export async function unpackCases(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'golden-'))
  for (const name of await packedCases(fixtures)) await unpackCase(join(fixtures, `${name}${packedSuffix}`), join(folder, name))
  return folder
}

/** Fails unless every quantity of the case is computed, and within its tolerance. */
export async function verifyCase(folder: string, device: DeviceChoice, compute: Compute): Promise<void> {
  const golden = await Golden.open(folder)
  const quantisation = folder.endsWith('-nf4') ? { quantisation: nf4 } : {}
  const computation = new CaseComputation(golden, { device, compute, ...quantisation })
  await computation.run()
  const results = await compare(golden, computation.quantities, new Set(), computation.target)
  assert.ok(results.length >= 10, `only ${results.length} quantities`)
  const bad = results.filter(({ verdict }) => verdict !== 'ok')
  assert.deepEqual(
    bad.map(({ name, verdict, error, tolerance }) => `${name}: ${verdict}, error ${error}, allowed ${tolerance}`),
    [],
  )
}
