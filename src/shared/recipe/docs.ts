import { rangeText } from './checks.ts'
import { valueEntries, type FieldMeta } from './field.ts'
import { recipeFields } from './fields.ts'
import { sectionDocs, sectionNames } from './schema.ts'

const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ')

function defaultText({ default: value, defaultDoc }: FieldMeta): string {
  if (defaultDoc !== undefined) return defaultDoc
  if (value === undefined) return 'required'
  if (value === null) return '—'
  if (Array.isArray(value)) return value.length === 0 ? '—' : `\`${value.join(',')}\``
  if (typeof value === 'object') return '—'
  return `\`${JSON.stringify(value).replace(/^"|"$/g, '')}\``
}

function valuesText(meta: FieldMeta): string {
  if (meta.values !== undefined)
    return valueEntries(meta)
      .map(([name]) => `\`${name}\``)
      .join(', ')
  const range = rangeText(meta)
  const kind = meta.kind === 'integer' ? 'whole number' : meta.kind
  return range === '' ? kind : `${kind}, ${range}`
}

function description(meta: FieldMeta): string {
  const parts = [meta.doc]
  if (meta.values !== undefined)
    parts.push(
      valueEntries(meta)
        .map(([name, text]) => `\`${name}\`: ${text}`)
        .join('; ') + '.',
    )
  if (meta.effect !== undefined) parts.push(`*Effect:* ${meta.effect}`)
  if (meta.availability !== undefined) parts.push(`*Availability:* ${meta.availability.note}.`)
  if (meta.aliases !== undefined) parts.push(`Also: ${meta.aliases.map((name) => `\`${name}\``).join(', ')}.`)
  return parts.join(' ')
}

const introduction = `# The recipe

<!-- Generated from src/shared/recipe/ by \`npm run docs\`; a test keeps it current. -->

A recipe says what a fine-tuning run is made of. It is YAML (or JSON), usually \`finetune.yaml\`:

\`\`\`yaml
version: 1
model: Qwen/Qwen2.5-0.5B          # a folder or a Hub id
data:
  local_dataset: data/train.jsonl # relative to this file
training:
  num_epochs: 1
  learning_rate: 2e-4
lora:
  lora_r: 16
  lora_alpha: 16
save:
  method: [lora, merged_16bit]
\`\`\`

\`unsloth finetune finetune.yaml\` runs it; \`--dry-run\` prints it with every default filled in, and the memory it needs.
Files of \`unsloth train\` and Unsloth Studio are recipes as they are. Unknown keys are errors, never ignored.

Every key is also a flag that overrides the file: \`--training.learning_rate 1e-4\`, \`--learning_rate 1e-4\` and
\`--learning-rate=1e-4\` are the same. Booleans are \`--packing\`, \`--no-packing\` or \`--packing=false\`. Without a file, a
command line of the Python tool's \`unsloth-cli.py\` can be pasted after \`unsloth finetune\`.

Relative paths in a recipe are relative to the recipe; on the command line, to the current folder. An empty value means the
default. Tokens do not belong in a recipe: they are dropped with a warning and recorded nowhere; set \`HF_TOKEN\` instead.
`

/** The reference of all keys, as Markdown. */
export function recipeDocs(): string {
  const parts = [introduction]
  for (const section of sectionNames) {
    const rows = recipeFields
      .filter((field) => field.section === section)
      .map(
        ({ key, meta }) => `| \`${key}\` | ${cell(defaultText(meta))} | ${cell(valuesText(meta))} | ${cell(description(meta))} |`,
      )
    parts.push(
      [`## ${section}`, '', sectionDocs[section], '', '| Key | Default | Values | |', '|---|---|---|---|', ...rows, ''].join(
        '\n',
      ),
    )
  }
  return parts.join('\n')
}
