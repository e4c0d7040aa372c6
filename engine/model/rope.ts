import { UnslothError } from '#shared/errors.ts'
import type { Config } from './config.ts'
import type { RopeFrequencies, RopeSpec } from './archSpec.ts'

const f32 = Math.fround

/** 1/θ^(2i/d) in fp32 with fp32 intermediates, as transformers computes it. */
function baseFrequencies(theta: number, rotated: number): Float32Array {
  return Float32Array.from({ length: rotated / 2 }, (_, i) => f32(1 / f32(Math.pow(theta, f32((2 * i) / rotated)))))
}

export interface RopeOptions {
  readonly headDim: number
  readonly defaultTheta: number
  readonly context: number
  readonly interleaved?: boolean
  /** Share of each head that is rotated when the config does not say. */
  readonly partial?: number
  /** Which nested `rope_parameters` entry to read when there is one per layer type. */
  readonly layerType?: 'full_attention' | 'sliding_attention'
  /** Where θ stands in the old config form, `rope_theta` when absent; another key also means that `rope_scaling` is not for these layers. */
  readonly thetaKey?: string
  /** Names that this family has for other types. */
  readonly aliases?: Readonly<Record<string, string>>
}

/**
 * Rotary frequencies from either config form: `rope_parameters` (transformers 5, θ inside, perhaps one entry per layer type) or
 * `rope_theta` + `rope_scaling`. Types: default, linear, dynamic, llama3, yarn, longrope (also called su). Formulas: transformers
 * `modeling_rope_utils`; llama3 from the Llama 3.1 release, yarn arXiv 2309.00071, longrope arXiv 2402.13753.
 */
export function ropeSpec(config: Config, options: RopeOptions): RopeSpec {
  const all = config.section('rope_parameters')
  const nested = all?.section('full_attention', 'sliding_attention') !== undefined
  const flat = options.thetaKey === undefined ? (all ?? config.section('rope_scaling')) : undefined
  const parameters = nested ? all.section(options.layerType ?? 'full_attention') : flat
  const theta = parameters?.optionalNumber('rope_theta') ?? config.number(options.defaultTheta, options.thetaKey ?? 'rope_theta')
  const partial =
    parameters?.optionalNumber('partial_rotary_factor') ?? config.number(options.partial ?? 1, 'partial_rotary_factor')
  const rotated = Math.floor(options.headDim * partial)
  const named = parameters?.string('rope_type', 'type') ?? 'default'
  const type = options.aliases?.[named] ?? named
  const table = frequencyTable(type, config, parameters, theta, rotated, options.context)
  return { scaling: type === 'su' ? 'longrope' : type, half: rotated / 2, interleaved: options.interleaved === true, table }
}

function frequencyTable(
  type: string,
  config: Config,
  parameters: Config | undefined,
  theta: number,
  rotated: number,
  context: number,
): RopeSpec['table'] {
  const constant = (inverse: Float32Array, factor = 1): RopeSpec['table'] => {
    const frequencies: RopeFrequencies = { key: '', inverse, factor }
    return () => frequencies
  }
  if (type === 'default' || parameters === undefined) return constant(baseFrequencies(theta, rotated))
  const factor = parameters.number(1, 'factor')
  switch (type) {
    case 'linear':
      return constant(baseFrequencies(theta, rotated).map((value) => f32(value / factor)))
    case 'dynamic':
      return (length) => {
        const reached = Math.max(length, context)
        const base = theta * Math.pow((factor * reached) / context - (factor - 1), rotated / (rotated - 2))
        return { key: String(reached), inverse: baseFrequencies(base, rotated), factor: 1 }
      }
    case 'llama3':
      return constant(llama3(baseFrequencies(theta, rotated), parameters, factor, context))
    case 'yarn':
      return yarn(config, parameters, theta, rotated, context, constant)
    case 'longrope':
      return longrope(config, parameters, theta, rotated, context)
    default:
      throw new UnslothError('MODEL_UNSUPPORTED', `config.json: rope type "${type}" is not supported.`, {
        hint: 'Supported: default, linear, dynamic, llama3, yarn, longrope.',
      })
  }
}

/** The context the model was trained on before scaling: a top-level key wins (Phi-3), then the rope section's, then the context. */
function originalContext(config: Config, parameters: Config, context: number): number {
  return (
    config.optionalNumber('original_max_position_embeddings') ?? parameters.number(context, 'original_max_position_embeddings')
  )
}

function llama3(inverse: Float32Array, parameters: Config, factor: number, context: number): Float32Array {
  const original = parameters.number(context, 'original_max_position_embeddings')
  const low = parameters.number(1, 'low_freq_factor')
  const high = parameters.number(4, 'high_freq_factor')
  return inverse.map((value) => {
    const wavelength = (2 * Math.PI) / value
    if (wavelength > original / low) return f32(value / factor)
    if (wavelength < original / high) return value
    const smooth = (original / wavelength - low) / (high - low)
    return f32(((1 - smooth) * value) / factor + smooth * value)
  })
}

function yarn(
  config: Config,
  parameters: Config,
  theta: number,
  rotated: number,
  context: number,
  constant: (inverse: Float32Array, factor: number) => RopeSpec['table'],
) {
  const original = originalContext(config, parameters, context)
  const factor = parameters.number(context / original, 'factor')
  const mscale = (scale: number, m: number) => (scale <= 1 ? 1 : 0.1 * m * Math.log(scale) + 1)
  const m = parameters.optionalNumber('mscale')
  const mAll = parameters.optionalNumber('mscale_all_dim')
  const attention =
    parameters.optionalNumber('attention_factor') ??
    (m !== undefined && mAll !== undefined && m !== 0 && mAll !== 0
      ? mscale(factor, m) / mscale(factor, mAll)
      : mscale(factor, 1))
  const dimension = (rotations: number) => (rotated * Math.log(original / (rotations * 2 * Math.PI))) / (2 * Math.log(theta))
  const truncate = parameters.boolean(true, 'truncate')
  let low = dimension(parameters.number(32, 'beta_fast'))
  let high = dimension(parameters.number(1, 'beta_slow'))
  if (truncate) [low, high] = [Math.floor(low), Math.ceil(high)]
  low = Math.max(low, 0)
  high = Math.min(high, rotated - 1)
  if (low === high) high += 0.001
  const base = baseFrequencies(theta, rotated)
  return constant(
    base.map((value, i) => {
      const ramp = Math.min(1, Math.max(0, (i - low) / (high - low)))
      return f32((value / factor) * ramp + value * (1 - ramp))
    }),
    attention,
  )
}

function longrope(config: Config, parameters: Config, theta: number, rotated: number, context: number): RopeSpec['table'] {
  const original = originalContext(config, parameters, context)
  const [short, long] = [parameters.numbers('short_factor'), parameters.numbers('long_factor')]
  if (short?.length !== rotated / 2 || long?.length !== rotated / 2)
    throw new UnslothError(
      'MODEL_INVALID',
      `config.json: longrope needs short_factor and long_factor with ${rotated / 2} numbers each.`,
    )
  const stretch = parameters.optionalNumber('factor') ?? context / original
  const attention =
    parameters.optionalNumber('attention_factor') ?? (stretch <= 1 ? 1 : Math.sqrt(1 + Math.log(stretch) / Math.log(original)))
  const scaled = (factors: readonly number[]) =>
    Float32Array.from(factors, (value, i) => f32(1 / f32(f32(value) * f32(Math.pow(theta, f32((2 * i) / rotated))))))
  const tables = { short: scaled(short), long: scaled(long) }
  return (length) => {
    const key = length > original ? 'long' : 'short'
    return { key, inverse: tables[key], factor: attention }
  }
}
