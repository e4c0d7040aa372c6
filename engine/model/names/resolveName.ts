import { UnslothError } from '#shared/errors.ts'
import { nameFamilies, type NameFamily } from './modelNames.ts'

/** The repositories of one model. */
interface Repositories {
  readonly official: string
  /** 16 bits at unsloth; the official one where there is no copy. */
  readonly full: string
  /** The 4-bit one to load. */
  readonly quantised: string
  /** Others in 4 bits. */
  readonly older: readonly string[]
}

function expand(family: NameFamily): Repositories[] {
  const pattern = family.unsloth ?? family.official.slice(family.official.indexOf('/') + 1)
  const kinds = [
    ['dynamic', family.dynamic],
    ['plain', family.plain],
    ['only4', family.only4],
  ] as const
  return kinds.flatMap(([kind, variants]) =>
    (variants ?? []).map((variant) => {
      const official = family.official.replace('{}', variant)
      const copy = `unsloth/${pattern.replace('{}', variant)}`
      const plain = `${copy}-bnb-4bit`
      return {
        official,
        full: kind === 'only4' ? official : copy,
        quantised: kind === 'dynamic' ? `${copy}-unsloth-bnb-4bit` : plain,
        older: kind === 'dynamic' ? [plain] : [],
      }
    }),
  )
}

const known: readonly Repositories[] = nameFamilies.flatMap(expand)

/** Every repository of every model, by its name in lower case. */
const byName: ReadonlyMap<string, Repositories> = new Map(
  known.flatMap((model) =>
    [model.official, model.full, model.quantised, ...model.older].map((name) => [name.toLowerCase(), model] as const),
  ),
)

export interface LoadPrecision {
  readonly loadIn4bit?: boolean
  readonly loadIn8bit?: boolean
  readonly loadIn16bit?: boolean
}

export interface ResolvedName {
  /** The repository to load. */
  readonly name: string
  readonly loadIn4bit: boolean
}

/**
 * The repository that a model's name stands for. In 4 bits: the 4-bit one, unless the name already is one (any `-bnb-4bit`). In 16
 * bits: unsloth's copy, which needs no licence to be accepted. Letters may be upper or lower case; a name that ends in `-bf16`
 * is 16 bits whatever was asked for; what is not known stays as it is.
 */
export function resolveName(name: string, precision: LoadPrecision): ResolvedName {
  const asked = [precision.loadIn4bit, precision.loadIn8bit, precision.loadIn16bit].filter((wanted) => wanted === true)
  if (asked.length > 1)
    throw new UnslothError('RECIPE', `${name} can be loaded in 4, 8 or 16 bits, not in a combination of them.`, {
      hint: 'Set only one of load_in_4bit, load_in_8bit and load_in_16bit.',
    })
  const lower = name.toLowerCase()
  const loadIn4bit = precision.loadIn4bit === true && !lower.endsWith('-bf16')
  const model = byName.get(lower)
  if (model === undefined) return { name, loadIn4bit }
  if (!loadIn4bit)
    return { name: precision.loadIn8bit === true && lower === model.official.toLowerCase() ? name : model.full, loadIn4bit }
  return { name: lower.endsWith('-bnb-4bit') ? name : model.quantised, loadIn4bit }
}

/** The makers' repository of a model, for showing where it comes from; the name itself when it is not known. */
export const officialName = (name: string): string => byName.get(name.toLowerCase())?.official ?? name
