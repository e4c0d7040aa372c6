import { expectation, recipeFields, sectionNames, type RecipeField } from '#shared/recipe.ts'
import { commandNames, commands, type CommandName, type CommandSpec } from './commandTable.ts'
import { dashed, type Flag } from './flags.ts'
import { flagName } from './flagsOfRecipe.ts'

const width = 30

function row(left: string, right: string): string {
  return left.length < width ? `  ${left.padEnd(width)}${right}` : `  ${left}\n  ${' '.repeat(width)}${right}`
}

function flagRow(name: string, flag: Flag): string {
  const value = flag.type === 'boolean' ? '' : ` ${flag.value ?? flag.type.toUpperCase()}${flag.type === 'list' ? ' …' : ''}`
  const short = flag.short === undefined ? '' : `-${flag.short}, `
  const choices = flag.choices === undefined ? '' : `: ${flag.choices.join(', ')}`
  const preset = flag.default === undefined ? '' : ` (default ${flag.default})`
  return row(`${short}${dashed(name)}${value}`, `${flag.summary}${choices}${preset}`)
}

function recipeRow(field: RecipeField): string {
  const { meta, path } = field
  const summary = meta.doc
    .split(/[.;]\s/)[0]!
    .replace(/[.;]$/, '')
    .replaceAll('`', '')
  const names = {
    boolean: '',
    list: ' NAME …',
    choice: ' NAME',
    text: ' TEXT',
    integer: ' N',
    number: ' N',
    mapping: ' NAME=COLUMN,…',
  }
  const value = meta.path === undefined ? names[meta.kind] : ' PATH'
  const what = meta.kind === 'choice' ? `; ${expectation(path).message}` : ''
  const preset =
    meta.default === null || meta.default === undefined || (Array.isArray(meta.default) && meta.default.length === 0)
      ? ''
      : ` (default ${Array.isArray(meta.default) ? meta.default.join(',') : JSON.stringify(meta.default).replaceAll('"', '')})`
  return row(`--${flagName(field)}${value}`, `${summary}${what}${preset}`)
}

/** Help for one command, or the list of commands. */
export function helpText(topic: CommandName | null = null): string {
  if (topic === null) {
    const shown = commandNames.filter((name) => !(commands[name] as CommandSpec).internal)
    return [
      'Fine-tune large language models, with no Python.',
      '',
      'Usage: unsloth COMMAND …',
      '',
      'Commands:',
      ...shown.map((name) => row(name, commands[name].summary)),
      '',
      'unsloth COMMAND --help describes a command; docs/recipe.md describes recipes.',
      '',
    ].join('\n')
  }
  const spec: CommandSpec = commands[topic]
  const words = spec.positionals.map(({ name, required, many }) => {
    const text = many === true ? `${name} …` : name
    return required === true ? text : `[${text}]`
  })
  const lines = [`unsloth ${topic}: ${spec.summary}`, '', `Usage: unsloth ${[topic, ...words, '[flags]'].join(' ')}`, '']
  for (const { name, summary } of spec.positionals) lines.push(row(name, summary))
  if (spec.positionals.length > 0) lines.push('')
  lines.push('Flags:', ...Object.entries(spec.flags).map(([name, flag]) => flagRow(name, flag)), row('-h, --help', 'this text'))
  if (spec.recipe === true) {
    lines.push(
      '',
      'Every key of the recipe is a flag that overrides the file; --SECTION.KEY, dashes and underscores are all understood,',
      'booleans are --KEY, --no-KEY or --KEY=false. Command lines of unsloth-cli.py work as they are.',
    )
    for (const section of sectionNames.filter((name) => name !== 'inference')) {
      lines.push('', `${section}:`, ...recipeFields.filter((field) => field.section === section).map(recipeRow))
    }
  }
  if (spec.examples !== undefined) lines.push('', 'Examples:', ...spec.examples.map((example) => `  ${example}`))
  lines.push('')
  return lines.join('\n')
}
