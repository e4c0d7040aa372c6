import * as z from 'zod'
import type { FieldMeta } from './field.ts'
import { recipeFields, type RecipeField } from './fields.ts'
import { recipeSchema, secretHint, secretKeys, sectionDocs, sectionNames, type SectionName } from './schema.ts'

type Json = Readonly<Record<string, unknown>>

/** Everything that an editor shows on hover: what the key does, its effect, range, default and availability. */
export function fieldMarkdown(meta: FieldMeta): string {
  const lines = [meta.doc]
  if (meta.effect !== undefined) lines.push(`**Effect:** ${meta.effect}`)
  if (meta.availability !== undefined) lines.push(`**Availability:** ${meta.availability.note}.`)
  return lines.join('\n\n')
}

function described({ meta, key }: RecipeField, type: Json): Json {
  const values = meta.values === undefined ? undefined : Object.keys(meta.values)
  const shape = meta.input ?? type
  const listed = values !== undefined && Array.isArray(shape.enum) && shape.enum.length >= values.length
  const enumDescriptions = listed
    ? (shape.enum as unknown[]).map(
        (value, index) => meta.values![String(value)] ?? (index < values.length ? '' : 'another spelling'),
      )
    : undefined
  return {
    ...shape,
    ...(meta.default === undefined || meta.default === null ? {} : { default: meta.default }),
    markdownDescription: fieldMarkdown(meta),
    ...(enumDescriptions === undefined ? {} : { enumDescriptions }),
    ...(meta.examples === undefined
      ? {}
      : { defaultSnippets: meta.examples.map((example) => ({ label: `${key}: ${String(example)}`, body: example })) }),
  }
}

/** Type of a field as JSON Schema, without what is said about it. */
function plainType(field: RecipeField): Json {
  const section = recipeSchema.shape[field.section]
  const inner = section instanceof z.ZodPrefault ? section.unwrap() : section
  const type = (inner.shape as Record<string, z.ZodType>)[field.key]!
  const schema = z.toJSONSchema(type, { target: 'draft-7', io: 'input', metadata: z.registry() })
  return Object.fromEntries(
    Object.entries(schema).filter(([name]) => name !== '$schema' && name !== 'default' && !name.startsWith('~')),
  )
}

function sectionSchema(section: SectionName): Json {
  const own = recipeFields.filter((field) => field.section === section)
  const properties: Record<string, Json> = {}
  for (const field of own) properties[field.key] = described(field, plainType(field))
  for (const field of own) {
    for (const alias of field.meta.aliases ?? []) {
      properties[alias] = {
        ...properties[field.key],
        deprecationMessage: `Another name of \`${field.key}\`.`,
        doNotSuggest: true,
      }
    }
  }
  if (section === 'logging' || section === 'hub') {
    for (const key of secretKeys) {
      properties[key] = {
        type: ['string', 'null'],
        markdownDescription: 'A secret: not used and not recorded.',
        deprecationMessage: `A secret does not belong in a file: remove it and ${secretHint(key).message}.`,
        doNotSuggest: true,
      }
    }
  }
  return {
    type: ['object', 'null'],
    additionalProperties: false,
    markdownDescription: sectionDocs[section],
    properties,
    ...(section === 'model' ? { required: [] } : {}),
  }
}

const wholeRecipe = {
  label: 'recipe: fine-tune with LoRA',
  description: 'A whole recipe to start from',
  body: {
    version: 1,
    model: '${1:Qwen/Qwen2.5-0.5B}',
    data: { local_dataset: '${2:data/train.jsonl}', format_type: 'auto' },
    training: {
      training_type: 'lora',
      max_seq_length: 2048,
      num_epochs: 1,
      learning_rate: 0.0002,
      batch_size: 2,
      gradient_accumulation_steps: 4,
    },
    lora: { lora_r: 16, lora_alpha: 16 },
    save: { method: 'lora' },
  },
}

/** JSON Schema (draft 7) of what may be written in a recipe, for editors that know nothing else of it. */
export function recipeJsonSchema(): Record<string, unknown> {
  const properties: Record<string, Json> = {
    version: { const: 1, default: 1, markdownDescription: 'Version of the recipe format.' },
  }
  for (const section of sectionNames) properties[section] = sectionSchema(section)
  const name = (properties.model!.properties as Record<string, Json>).name
  properties.model = {
    markdownDescription: sectionDocs.model,
    anyOf: [
      { ...name, markdownDescription: sectionDocs.model },
      { ...properties.model, type: 'object' },
    ],
  }
  return {
    $schema: 'http://json-schema.org/draft-07/schema#',
    title: 'Fine-tuning recipe',
    type: 'object',
    additionalProperties: false,
    required: ['model', 'data'],
    defaultSnippets: [wholeRecipe],
    properties,
  }
}
