import { UnslothError } from '#shared/errors.ts'

/** Modules by the end of their path, or by a regular expression on the whole path, as in PEFT. */
export type ModuleChoice = readonly string[] | { readonly pattern: string }

/** Which modules get an adapter; see LoraOptions. */
export interface Targets {
  readonly targets: ModuleChoice | 'all-linear'
  readonly exclude?: ModuleChoice
  readonly layers?: readonly number[]
  readonly layersPattern?: readonly string[]
}

export const endsIn = (name: string, target: string): boolean => name === target || name.endsWith(`.${target}`)

/** A regular expression of a recipe, anchored as Python's `re.fullmatch` and `re.match` are. */
export function expression(source: string, key: string): RegExp {
  try {
    return new RegExp(source)
  } catch (cause) {
    throw new UnslothError('RECIPE', `lora.${key}: ${source.replace(/^\^\(\?:|\)\$$/g, '')} is not a regular expression.`, {
      hint: 'Correct it, or write a list of names.',
      cause,
    })
  }
}

const chooses = (choice: ModuleChoice, module: string, key: string): boolean =>
  'pattern' in choice ? expression(`^(?:${choice.pattern})$`, key).test(module) : choice.some((name) => endsIn(module, name))

/** Whether a module of one of the decoder's layers gets an adapter (PEFT's check_target_module_exists). */
export function isTarget(module: string, layer: number, { targets, exclude, layers, layersPattern = [] }: Targets): boolean {
  if (exclude !== undefined && chooses(exclude, module, 'exclude_modules')) return false
  if (targets !== 'all-linear' && !chooses(targets, module, 'target_modules')) return false
  const byName = targets !== 'all-linear' && !('pattern' in targets) && targets.includes(module)
  if (layers === undefined || byName) return true
  if (layersPattern.length === 0) return layers.includes(layer)
  for (const pattern of layersPattern) {
    const index = expression(`^(?:.*?\\.)?(?:${pattern})\\.(\\d+)\\.`, 'layers_pattern').exec(module)?.[1]
    if (index !== undefined) return layers.includes(Number(index))
  }
  return false
}
