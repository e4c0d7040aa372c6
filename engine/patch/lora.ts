import { UnslothError } from '#shared/errors.ts'
import { endsIn, expression, isTarget, type ModuleChoice } from './targets.ts'
import type { StoredForm } from '../model/storedForm.ts'
import type { WeightEntry } from '../model/weightTable.ts'

export interface LoraOptions {
  readonly r: number
  readonly alpha: number
  readonly dropout: number
  /** Last parts of module names (`q_proj`), full module paths, a pattern, or `all-linear`. */
  readonly targets: ModuleChoice | 'all-linear'
  /** Modules that get none though they are targets. */
  readonly exclude?: ModuleChoice
  readonly rslora: boolean
  /** Train the lengths of rows apart from their directions (DoRA, arXiv 2402.09353). Default: no. */
  readonly dora?: boolean
  /** Biases that are trained along: all of them, or those of adapted layers. Default none. */
  readonly bias?: 'none' | 'all' | 'lora_only'
  /** Only these layers, when given. A target that is a full path is taken anyway. */
  readonly layers?: readonly number[]
  /** What stands before the layer's number in a path, by regular expression; default: anything. */
  readonly layersPattern?: readonly string[]
  /**
   * Stacked expert parameters by the end of their name (`mlp.experts.gate_up_proj`). When absent, targets named like the parts of
   * an expert (`gate_proj`, `up_proj`, `down_proj`) mean the experts too.
   */
  readonly targetParameters?: readonly string[]
  /** Other ranks and alphas for modules and parameters whose names match, by regular expression as in PEFT. */
  readonly rankPattern?: Readonly<Record<string, number>>
  readonly alphaPattern?: Readonly<Record<string, number>>
}

/** One adapted projection: a range of rows of a weight. */
export interface LoraModule {
  /** Module path in the checkpoint, e.g. `model.layers.0.self_attn.q_proj`. */
  readonly module: string
  readonly weightId: string
  /** Rows of that weight, of which these are `width` from `column` on. */
  readonly weightRows: number
  readonly layer: number
  readonly column: number
  readonly width: number
  readonly inputs: number
  /** Of one expert, when the weight is a stack. */
  readonly rank: number
  readonly scale: number
  readonly dropout: number
  readonly dora?: true
  /** The weight is a stack of this many experts: A is [experts·rank, inputs], B [width, experts·rank] as PEFT stores them. */
  readonly experts?: number
  /** How adapter files order the rows of B, when otherwise. */
  readonly form?: StoredForm
  /** The parameter that PEFT's `target_parameters` would name. */
  readonly parameter?: string
}

/** scale = alpha/r, or alpha/√r with rsLoRA (arXiv 2312.03732). */
export const loraScale = (alpha: number, r: number, rslora: boolean): number => alpha / (rslora ? Math.sqrt(r) : r)

const lastName = (module: string): string => module.slice(module.lastIndexOf('.') + 1)

/** Modules that LoRA can be put on, in the order of the weight table. */
function candidates(weights: readonly WeightEntry[]): LoraModule[] {
  return weights
    .filter(({ kind }) => kind === 'linear')
    .flatMap((entry) =>
      entry.pieces.map((piece) => ({
        module: piece.name.replace(/\.weight$/, ''),
        weightId: entry.id,
        weightRows: entry.rows,
        layer: entry.layer,
        column: piece.row,
        width: piece.rows,
        inputs: entry.cols,
        rank: 0,
        scale: 0,
        dropout: 0,
        ...(piece.form?.grouped === undefined ? {} : { form: { grouped: piece.form.grouped } }),
      })),
    )
}

const partsOfExperts: Readonly<Record<string, readonly string[]>> = {
  gate_up_proj: ['gate_proj', 'up_proj', 'gate_up_proj'],
  down_proj: ['down_proj'],
}

/**
 * Stacked experts that are adapted. PEFT wraps a module once for each of its parameters, the later around the earlier: the last
 * one's matrices stand under the module's name, those before it under one `base_layer` more each.
 */
function expertModules(weights: readonly WeightEntry[], options: LoraOptions): LoraModule[] {
  const stacks = weights.filter((entry) => entry.kind === 'experts' && (options.layers?.includes(entry.layer) ?? true))
  const wanted = ({ parameter }: WeightEntry): boolean => {
    if (options.targetParameters !== undefined) return options.targetParameters.some((target) => endsIn(parameter!, target))
    const { targets } = options
    return (
      targets !== 'all-linear' &&
      !('pattern' in targets) &&
      (partsOfExperts[lastName(parameter!)] ?? []).some((part) => targets.includes(part))
    )
  }
  const chosen = stacks.filter(wanted)
  if (chosen.length > 0 && options.dropout > 0)
    throw new UnslothError(
      'RECIPE',
      `lora.lora_dropout: ${options.dropout} is not possible with adapters on experts (${lastName(chosen[0]!.parameter!)}).`,
      { hint: 'Set lora_dropout to 0, or leave the experts out of lora.target_modules.' },
    )
  if (chosen.length > 0 && options.dora === true)
    throw new UnslothError(
      'RECIPE',
      `lora.use_dora is not possible with adapters on experts (${lastName(chosen[0]!.parameter!)}), as in PEFT.`,
      { hint: 'Set use_dora: false, or leave the experts out of lora.target_modules and lora.target_parameters.' },
    )
  return chosen.map((entry) => {
    const parameter = entry.parameter!
    const owner = parameter.slice(0, parameter.lastIndexOf('.'))
    const around = chosen.slice(chosen.indexOf(entry) + 1).filter((other) => other.parameter!.startsWith(`${owner}.`)).length
    const experts = entry.experts!
    return {
      module: owner + '.base_layer'.repeat(around),
      weightId: entry.id,
      weightRows: entry.rows,
      layer: entry.layer,
      column: 0,
      width: entry.rows / experts,
      inputs: entry.cols,
      rank: 0,
      scale: 0,
      dropout: 0,
      experts,
      parameter,
    }
  })
}

/** Which projections are adapted, with rank and scale. A target that matches nothing is an error that lists what there is. */
export function loraModules(weights: readonly WeightEntry[], options: LoraOptions): LoraModule[] {
  const all = candidates(weights)
  const { targets } = options
  const experts = expertModules(weights, options)
  if (targets !== 'all-linear' && !('pattern' in targets)) {
    // With experts chosen by parameter, names of their parts (as in the default targets) mean the dense layers that have them.
    const covered =
      options.targetParameters === undefined
        ? experts
        : options.targetParameters.length > 0
          ? weights.filter(({ kind }) => kind === 'experts')
          : []
    const parts = covered.flatMap(({ parameter }) => partsOfExperts[lastName(parameter!)] ?? [])
    const missing = targets.filter((target) => !parts.includes(target) && !all.some(({ module }) => endsIn(module, target)))
    if (missing.length > 0) {
      const names = [...new Set(all.map(({ module }) => lastName(module)))]
      throw new UnslothError('RECIPE', `lora.target_modules: this model has no ${missing.join(', ')}.`, {
        hint: `It has ${names.join(', ')}; "all-linear" takes all of them.`,
      })
    }
  }
  const stacks = weights.flatMap(({ kind, parameter }) => (kind === 'experts' ? [parameter!] : []))
  const unknown = (options.targetParameters ?? []).filter((target) => !stacks.some((parameter) => endsIn(parameter, target)))
  if (unknown.length > 0)
    throw new UnslothError('RECIPE', `lora.target_parameters: this model has no ${unknown.join(', ')}.`, {
      hint:
        stacks.length === 0
          ? 'It has no experts; leave target_parameters out.'
          : `It has ${[...new Set(stacks.map((parameter) => parameter.split('.').slice(-3).join('.')))].join(', ')}.`,
    })
  const modules = [...all.filter(({ module, layer }) => isTarget(module, layer, options)), ...experts]
  if (modules.length === 0)
    throw new UnslothError('RECIPE', 'lora.target_modules, exclude_modules and layers_to_transform leave nothing to train.', {
      hint: `Layers have paths such as ${all[0]?.module ?? 'none'}; a regular expression has to match all of one.`,
    })
  return modules.map((module) => {
    const name = module.parameter ?? module.module
    // Gate and up of experts are one matrix: as much rank as the two would have had, as PEFT converts such targets.
    const joined =
      options.targetParameters === undefined && module.parameter !== undefined && lastName(name) === 'gate_up_proj' ? 2 : 1
    const rank = patternValue(options.rankPattern, name) ?? options.r * joined
    const alpha = patternValue(options.alphaPattern, name) ?? options.alpha * joined
    return {
      ...module,
      rank,
      scale: loraScale(alpha, rank, options.rslora),
      dropout: options.dropout,
      ...(options.dora === true ? { dora: true as const } : {}),
    }
  })
}

function patternValue(pattern: Readonly<Record<string, number>> | undefined, name: string): number | undefined {
  return Object.entries(pattern ?? {}).find(([key]) =>
    expression(`^(?:.*\\.)?(?:${key})$`, 'rank_pattern or alpha_pattern').test(name),
  )?.[1]
}

/** The biases that are trained along with the adapters; a fused one only with adapters on all of its layers. */
export function trainedBiases(
  weights: readonly WeightEntry[],
  modules: readonly LoraModule[],
  bias: LoraOptions['bias'],
): WeightEntry[] {
  const all = weights.filter(({ kind }) => kind === 'bias')
  if (bias === 'all') return all
  if (bias !== 'lora_only') return []
  const adapted = new Set(modules.map(({ module }) => module))
  return all.filter(({ id, pieces }) => {
    const mine = pieces.filter(({ name }) => adapted.has(name.replace(/\.bias$/, '')))
    if (mine.length > 0 && mine.length < pieces.length)
      throw new UnslothError(
        'RECIPE',
        `lora.bias: lora_only is not possible for ${id}, of which only ${mine.map(({ name }) => lastName(name.replace(/\.bias$/, ''))).join(', ')} has an adapter.`,
        { hint: 'Adapt q_proj, k_proj and v_proj (gate_proj and up_proj) together, or set bias to none or all.' },
      )
    return mine.length > 0
  })
}

/** What users of the Python library look for: how many layers run fused, and why a group does not. */
export interface PatchReport {
  readonly layers: number
  readonly qkv: number
  readonly o: number
  readonly mlp: number
  /** Reasons, each with the layers that it holds for. */
  readonly notFused: readonly {
    readonly group: 'QKV' | 'O' | 'MLP'
    readonly reason: string
    readonly layers: readonly number[]
  }[]
}

/** A group is fused when all of its projections are adapted and share one pass over their input; experts are one projection each. */
export function patchReport(weights: readonly WeightEntry[], modules: readonly LoraModule[], layers: number): PatchReport {
  const adapted = new Map(modules.map((module) => [module.parameter ?? module.module, module]))
  const byLayer = (layer: number, ids: readonly string[]) =>
    weights
      .filter((entry) => entry.layer === layer && ids.some((id) => entry.id === `layers.${layer}.${id}`))
      .flatMap(({ kind, parameter, pieces }) =>
        kind === 'experts' ? [parameter!] : pieces.map(({ name }) => name.replace(/\.weight$/, '')),
      )
  const count = { QKV: 0, O: 0, MLP: 0 }
  const reasons = new Map<string, { group: 'QKV' | 'O' | 'MLP'; reason: string; layers: number[] }>()
  const groups = [
    ['QKV', ['qkv']],
    ['O', ['o']],
    ['MLP', ['gateUp', 'up', 'down', 'expertGateUp', 'expertDown', 'sharedGateUp', 'sharedDown']],
  ] as const
  for (let layer = 0; layer < layers; ++layer) {
    for (const [group, ids] of groups) {
      const names = byLayer(layer, ids)
      const without = names.filter((name) => !adapted.has(name))
      const dropped = names.some((name) => (adapted.get(name)?.dropout ?? 0) > 0)
      if (without.length === 0 && !dropped) {
        ++count[group]
        continue
      }
      const reason =
        without.length === names.length
          ? 'not a target'
          : without.length > 0
            ? `${without.map(lastName).join(', ')} without LoRA`
            : 'lora_dropout > 0 gives each projection its own input'
      const key = `${group}: ${reason}`
      const known = reasons.get(key)
      if (known === undefined) reasons.set(key, { group, reason, layers: [layer] })
      else known.layers.push(layer)
    }
  }
  return { layers, qkv: count.QKV, o: count.O, mlp: count.MLP, notFused: [...reasons.values()] }
}

export function formatPatchReport(report: PatchReport): string[] {
  const head = `patched ${report.layers} layers: ${report.qkv} fused QKV, ${report.o} O, ${report.mlp} MLP`
  return [
    head,
    ...report.notFused.map(({ group, reason, layers }) => `  ${group} not fused in ${layers.length} layers: ${reason}`),
  ]
}
