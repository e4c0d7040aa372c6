import { UnslothError } from '#shared/errors.ts'
import type { ArchSpec } from './archSpec.ts'
import { Config, type HfConfig } from './config.ts'
import { cohere, cohere2 } from './arch/cohere.ts'
import { gemma, gemma2, gemma3 } from './arch/gemma.ts'
import { ernie45 } from './arch/ernie45.ts'
import { glm4 } from './arch/glm4.ts'
import { granite, graniteMoe } from './arch/granite.ts'
import { llama } from './arch/llama.ts'
import { mistral } from './arch/mistral.ts'
import { mixtral } from './arch/mixtral.ts'
import { olmo2, olmo3 } from './arch/olmo2.ts'
import { phi3 } from './arch/phi3.ts'
import { qwen2 } from './arch/qwen2.ts'
import { qwen2Moe } from './arch/qwen2Moe.ts'
import { qwen3 } from './arch/qwen3.ts'
import { qwen3Moe } from './arch/qwen3Moe.ts'
import { falcon } from './arch/falcon.ts'
import { gpt2 } from './arch/gpt2.ts'
import { gptNeox } from './arch/gptNeox.ts'
import { olmo } from './arch/olmo.ts'
import { phi } from './arch/phi.ts'
import { seedOss } from './arch/seedOss.ts'
import { smollm3 } from './arch/smollm3.ts'
import { stablelm } from './arch/stablelm.ts'
import { starcoder2 } from './arch/starcoder2.ts'

/** One family of models: which Hub architectures it serves and how their config becomes a spec. */
export interface ArchitectureFamily {
  readonly architectures: readonly string[]
  /** Models that people know by name. */
  readonly models: string
  readonly spec: (config: Config) => ArchSpec
}

export const families: readonly ArchitectureFamily[] = [
  llama,
  mistral,
  qwen2,
  qwen3,
  gemma,
  gemma2,
  gemma3,
  phi3,
  cohere,
  cohere2,
  granite,
  olmo2,
  smollm3,
  mixtral,
  qwen3Moe,
  starcoder2,
  stablelm,
  glm4,
  olmo3,
  graniteMoe,
  seedOss,
  ernie45,
  olmo,
  phi,
  gptNeox,
  gpt2,
  falcon,
  qwen2Moe,
]

export const supportedArchitectures: readonly string[] = families.flatMap((family) => family.architectures)

/** The spec of a model folder's config.json; `where` names the file in errors. */
export function archSpec(values: HfConfig, where = 'config.json'): ArchSpec {
  const config = new Config(values, where)
  const named = config.strings('architectures')?.[0]
  if (named === undefined)
    throw new UnslothError('MODEL_INVALID', `${where}: "architectures" is missing, so the model's kind is unknown.`, {
      hint: `Supported: ${supportedArchitectures.join(', ')}.`,
    })
  const family = families.find(({ architectures }) => architectures.includes(named))
  if (family === undefined)
    throw new UnslothError('MODEL_UNSUPPORTED', `${where}: architecture ${named} is not supported yet.`, {
      hint: `Supported: ${supportedArchitectures.join(', ')}.`,
    })
  return family.spec(config)
}
