import assert from 'node:assert/strict'
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import { recipeDocs, recipeFields, recipeJsonSchema } from '#shared/recipe.ts'
import { parseDocument } from '../../engine/recipe/recipeDocument.ts'
import { generatedDocs, writeGeneratedDocs } from '../../engine/recipe/generate.ts'

const root = path.join(import.meta.dirname, '../..')
interface Schema {
  readonly properties: Readonly<Record<string, Property>>
  readonly anyOf?: readonly Property[]
}
interface Property extends Partial<Schema> {
  readonly markdownDescription?: string
  readonly deprecationMessage?: string
  readonly enum?: readonly unknown[]
  readonly enumDescriptions?: readonly string[]
  readonly defaultSnippets?: readonly { readonly body: unknown }[]
  readonly default?: unknown
  readonly exclusiveMinimum?: number
  readonly additionalProperties?: boolean
}

const schema = recipeJsonSchema() as unknown as Schema
function properties(section: string): Readonly<Record<string, Property>> {
  const { properties } = schema
  const own = properties[section]!
  return (own.anyOf?.[1] ?? own).properties!
}

describe('recipe docs', () => {
  it('are current in the repository', () => {
    for (const [name, content] of generatedDocs()) {
      assert.ok(fs.readFileSync(path.join(root, name), 'utf8') === content, `${name} is not current: npm run docs`)
    }
  })

  it('are written only when they changed', () => {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'unsloth-docs-'))
    assert.deepEqual(writeGeneratedDocs(folder), ['docs/architectures.md', 'docs/recipe.md', 'syntaxes/finetune.schema.json'])
    assert.deepEqual(writeGeneratedDocs(folder), [])
    assert.deepEqual(fs.readdirSync(path.join(folder, 'docs')), ['architectures.md', 'recipe.md'])
    fs.rmSync(folder, { recursive: true })
  })

  it('describe every key', () => {
    const docs = recipeDocs()
    for (const { section, key, meta } of recipeFields) {
      assert.ok(docs.includes(`| \`${key}\` |`), `${section}.${key}`)
      assert.ok(properties(section)[key]?.markdownDescription?.startsWith(meta.doc), `${section}.${key}`)
      assert.match(meta.doc, /^[A-Z`].*[.`)]$/s, `${section}.${key} is described in sentences`)
    }
  })
})

describe('recipe JSON Schema', () => {
  it('is strict, draft 7, and has defaults, ranges and snippets', () => {
    const schema = recipeJsonSchema()
    assert.equal(schema.$schema, 'http://json-schema.org/draft-07/schema#')
    assert.equal(schema.additionalProperties, false)
    const training = properties('training')
    assert.deepEqual([training.learning_rate!.default, training.learning_rate!.exclusiveMinimum], [2e-4, 0])
    assert.deepEqual(
      training.learning_rate!.defaultSnippets!.map((snippet) => snippet.body),
      [2e-4, 1e-4, 2e-5],
    )
    assert.match(JSON.stringify(schema), /"minimum":1,"maximum":4096/)
  })

  it('describes each value of an enumeration', () => {
    const { enum: values, enumDescriptions } = properties('training').gradient_checkpointing!
    assert.deepEqual(values!.slice(0, 4), ['auto', 'none', 'full', 'offload'])
    assert.ok(values!.includes('unsloth') && values!.includes(true))
    assert.equal(enumDescriptions!.length, values!.length)
  })

  it('deprecates aliases and secrets', () => {
    assert.match(properties('training').seed!.deprecationMessage!, /random_seed/)
    assert.match(properties('logging').hf_token!.deprecationMessage!, /HF_TOKEN/)
    assert.equal(properties('training').random_seed!.deprecationMessage, undefined)
  })

  it('knows every key of the sample recipes', () => {
    const fixtures = path.join(root, 'test/fixtures/recipes')
    for (const name of fs.readdirSync(fixtures)) {
      const { value } = parseDocument(fs.readFileSync(path.join(fixtures, name), 'utf8'), { json: name.endsWith('.json') })
      for (const [section, content] of Object.entries(value as Record<string, unknown>)) {
        assert.ok(schema.properties[section], `${name}: ${section}`)
        if (typeof content !== 'object') continue
        for (const key of Object.keys(content ?? {})) assert.ok(properties(section)[key], `${name}: ${section}.${key}`)
      }
    }
  })

  it('holds nothing that JSON cannot say', () => {
    assert.deepEqual(JSON.parse(JSON.stringify(recipeJsonSchema())), recipeJsonSchema())
    assert.ok(!JSON.stringify(recipeJsonSchema()).includes('undefined'))
  })
})
