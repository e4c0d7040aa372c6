import { UnslothError } from '#shared/errors.ts'
import { closest, fieldAt, type RecipeOverride } from '#shared/recipe.ts'
import { commandNames, commands, type CommandName, type CommandSpec } from './commandTable.ts'
import {
  flagKey,
  isFlag,
  readFlag,
  splitFlag,
  unknownFlag,
  usage,
  Words,
  type Flag,
  type FlagTable,
  type FlagValues,
} from './flags.ts'
import { isSecretFlag, readRecipeFlag, recipeFlag, recipeFlagNames } from './flagsOfRecipe.ts'
import {
  isOldCommandLine,
  oldFlag,
  oldFlags,
  translateOldCommandLine,
  translateOldFlags,
  type OldFlags,
} from './flagsOfUnslothCli.ts'

/** What the recipe of a command is made of; see `loadRecipe`. */
export interface RecipeArguments {
  readonly file: string | null
  readonly overrides: readonly RecipeOverride[]
}

/** A command line, read and checked; flags are typed by the table of the command. */
export type ParsedCommand = {
  [Name in CommandName]: {
    readonly command: Name
    readonly positionals: readonly string[]
    readonly flags: FlagValues<(typeof commands)[Name]['flags']>
    /** Only with commands that take a recipe. */
    readonly recipe: Name extends 'finetune' | 'data' ? RecipeArguments : null
    /** To be shown, one line each. */
    readonly warnings: readonly string[]
  }
}[CommandName]

export type ParsedArgs =
  ParsedCommand | { readonly command: 'help'; readonly topic: CommandName | null } | { readonly command: 'version' }

/** Exit code for an error that ends the program: 2 for a bad command line, as the Python tools have it, else 1. */
export function exitCodeOf(error: unknown): number {
  return UnslothError.is(error, 'USAGE') ? 2 : 1
}

const isCommand = (word: string): word is CommandName => Object.hasOwn(commands, word)

/** Reads a command line (without the program's own name). Throws USAGE errors. */
export function parseArgs(argv: readonly string[]): ParsedArgs {
  const [first, ...rest] = argv
  if (first === undefined || first === 'help' || first === '--help' || first === '-h') {
    const topic = first === 'help' ? rest[0] : undefined
    if (topic !== undefined && !isCommand(topic)) throw unknownCommand(topic)
    return { command: 'help', topic: topic ?? null }
  }
  if (first === '--version' || first === '-V' || first === 'version') return { command: 'version' }
  // `unsloth train` is how the Python program calls it.
  const name = first === 'train' ? 'finetune' : first
  if (!isCommand(name)) throw unknownCommand(first)
  const end = rest.indexOf('--')
  const asked = end < 0 ? rest : rest.slice(0, end)
  if (asked.includes('--help') || asked.includes('-h')) return { command: 'help', topic: name }
  return readCommand(name, rest)
}

function unknownCommand(word: string): UnslothError {
  const near = closest(word, commandNames)
  const meant = near === undefined ? '' : `; did you mean ${near}?`
  return usage(
    isFlag(word) ? 'a command must come first' : `${word} is not a command${meant}`,
    `the commands are ${commandNames.filter((name) => !(commands[name] as CommandSpec).internal).join(', ')}`,
  )
}

function findFlag(table: FlagTable, name: string): readonly [string, Flag] | undefined {
  const key = flagKey(name)
  return Object.entries(table).find(([own, flag]) => own === key || flag.short === name || flag.aliases?.includes(key))
}

interface Collected {
  readonly flags: Map<string, unknown>
  readonly positionals: string[]
  readonly overrides: RecipeOverride[]
  readonly old: Map<string, unknown>
  /** Names of all recipe flags as typed. */
  readonly names: string[]
  readonly warnings: string[]
}

function readWord(command: CommandName, word: string, words: Words, into: Collected): void {
  const spec: CommandSpec = commands[command]
  const { flag, name, inline } = splitFlag(word)
  const own = findFlag(spec.flags, name)
  if (own !== undefined) {
    into.flags.set(own[0], readFlag(flag, own[1], inline, words))
    return
  }
  const negated = /^no[-_]/.test(name) && inline === undefined ? name.slice(3) : undefined
  const ownNegated = negated === undefined ? undefined : findFlag(spec.flags, negated)
  if (ownNegated?.[1].type === 'boolean') {
    into.flags.set(ownNegated[0], false)
    return
  }
  if (spec.recipe === true) {
    if (readRecipeWord(flag, name, negated, inline, words, into)) return
    throw unknownFlag(flag, command, [...Object.keys(spec.flags), ...recipeFlagNames, ...Object.keys(oldFlags)])
  }
  throw unknownFlag(flag, command, Object.keys(spec.flags))
}

function readRecipeWord(
  flag: string,
  name: string,
  negated: string | undefined,
  inline: string | undefined,
  words: Words,
  into: Collected,
): boolean {
  if (isSecretFlag(name)) {
    if (inline === undefined && words.peek() !== undefined && !isFlag(words.peek()!)) words.next()
    into.names.push(name)
    into.warnings.push(
      `${flag} is not used and not recorded: a token on a command line can be seen by others; ` +
        `set ${flagKey(name).includes('wandb') ? 'WANDB_API_KEY' : 'HF_TOKEN'} in the environment`,
    )
    return true
  }
  const old = oldFlag(name)
  if (old !== undefined) {
    into.names.push(name)
    into.old.set(old.key, readFlag(flag, old.spec, inline, words))
    return true
  }
  const field = recipeFlag(name)
  if (field !== undefined) {
    into.names.push(name)
    into.overrides.push(readRecipeFlag(flag, field, inline, words))
    return true
  }
  const off = negated === undefined ? undefined : recipeFlag(negated)
  if (off?.meta.kind !== 'boolean' && off?.path !== 'training.gradient_checkpointing') return false
  into.names.push(negated!)
  into.overrides.push({ path: off.path, flag, value: false })
  return true
}

/** The last of several flags for one key wins, as in other programs; lists of files add up. */
function combine(overrides: readonly RecipeOverride[]): RecipeOverride[] {
  const byPath = new Map<string, RecipeOverride>()
  for (const override of overrides) {
    const earlier = byPath.get(override.path)?.value
    const adds = fieldAt(override.path)?.meta.path !== undefined && Array.isArray(earlier) && Array.isArray(override.value)
    const value = adds ? [...(earlier as unknown[]), ...(override.value as unknown[])] : override.value
    byPath.set(override.path, { ...override, value })
  }
  return [...byPath.values()]
}

function recipeArguments(collected: Collected): RecipeArguments {
  const { flags, positionals, overrides, old, names, warnings } = collected
  const config = flags.get('config') as string | undefined
  if (config !== undefined && positionals[0] !== undefined) {
    throw usage(`two recipes are named: ${positionals[0]} and --config ${config}; keep one`)
  }
  const file = config ?? positionals[0] ?? null
  const oldValues = Object.fromEntries(old) as OldFlags
  const translate = file === null && isOldCommandLine(names) ? translateOldCommandLine : translateOldFlags
  const translation = translate(oldValues, overrides)
  warnings.push(...translation.warnings)
  const all = translate === translateOldCommandLine ? translation.overrides : [...overrides, ...translation.overrides]
  return { file, overrides: combine(all) }
}

function readCommand(command: CommandName, argv: readonly string[]): ParsedCommand {
  const spec: CommandSpec = commands[command]
  const collected: Collected = { flags: new Map(), positionals: [], overrides: [], old: new Map(), names: [], warnings: [] }
  const words = new Words(argv)
  for (let word = words.next(); word !== undefined; word = words.next()) {
    if (word === '--') collected.positionals.push(...words.rest())
    else if (isFlag(word)) readWord(command, word, words, collected)
    else collected.positionals.push(word)
  }
  handBack(spec, collected)
  checkPositionals(command, spec, collected.positionals)
  for (const [name, flag] of Object.entries(spec.flags)) {
    if (collected.flags.has(name)) continue
    const value = flag.default ?? (flag.type === 'boolean' ? false : undefined)
    if (value !== undefined) collected.flags.set(name, value)
  }
  return {
    command,
    positionals: collected.positionals,
    recipe: spec.recipe === true ? recipeArguments(collected) : null,
    flags: Object.fromEntries(collected.flags),
    warnings: collected.warnings,
    // The values were read by the table that the type is made from.
  } as ParsedCommand
}

/** `verify --skip a b DIR`: the list took the folder, too; it gives it back when the folder is missing. */
function handBack({ positionals, flags }: CommandSpec, { positionals: given, flags: values }: Collected): void {
  const missing = positionals.filter((positional) => positional.required === true).length - given.length
  const [name, list] = [...values].reverse().find(([key]) => flags[key]?.type === 'list') ?? []
  if (missing !== 1 || name === undefined || !Array.isArray(list) || list.length < 2) return
  given.push(list.at(-1) as string)
  values.set(name, list.slice(0, -1))
}

function checkPositionals(command: string, { positionals }: CommandSpec, given: readonly string[]): void {
  const missing = positionals.find((positional, index) => positional.required === true && given[index] === undefined)
  if (missing !== undefined) {
    throw usage(`${command} needs ${missing.name}: ${missing.summary}`, `unsloth ${command} --help shows how`)
  }
  const extra = positionals.at(-1)?.many === true ? undefined : given[positionals.length]
  if (extra !== undefined) {
    throw usage(`${command} does not take ${JSON.stringify(extra)}`, `unsloth ${command} --help shows what it takes`)
  }
}
