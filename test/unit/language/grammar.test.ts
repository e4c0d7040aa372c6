import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { sectionNames } from '#shared/recipe.ts'
import { root } from './support.ts'

const read = (name: string): unknown => JSON.parse(readFileSync(join(root, 'syntaxes', name), 'utf8'))

interface Rule {
  readonly match?: string
  readonly begin?: string
  readonly end?: string
  readonly include?: string
  readonly patterns?: readonly Rule[]
}

describe('recipe grammar', () => {
  const grammar = read('finetune.tmLanguage.json') as { scopeName: string; repository: Record<string, Rule>; patterns: Rule[] }

  it('has expressions that compile and includes that exist', () => {
    const check = (rule: Rule): void => {
      for (const source of [rule.match, rule.begin, rule.end])
        if (source !== undefined) assert.doesNotThrow(() => new RegExp(source), source)
      if (rule.include !== undefined) assert.ok(rule.include.slice(1) in grammar.repository, rule.include)
      rule.patterns?.forEach(check)
    }
    Object.values(grammar.repository).forEach(check)
    grammar.patterns.forEach(check)
    assert.equal(grammar.scopeName, 'source.finetune-yaml')
  })

  it('knows every section, and tells numbers, sizes, models and paths apart', () => {
    const section = new RegExp(grammar.repository.section!.match!)
    for (const name of ['version', ...sectionNames]) assert.ok(section.test(`${name}:`), name)
    const matches = (rule: string, value: string): boolean => new RegExp(grammar.repository[rule]!.match!).test(`key: ${value}`)
    for (const value of ['2e-4', '0.0002', '2048', '-1']) assert.ok(matches('number', value), value)
    assert.ok(matches('size', '5GB') && matches('modelId', 'Qwen/Qwen2.5-0.5B') && matches('path', 'data/train.jsonl'))
    assert.ok(!matches('modelId', 'data/train.jsonl') && !matches('number', '5GB') && matches('constant', 'true'))
  })

  it('has brackets and comments for the editor', () => {
    const configuration = read('language-configuration.json') as { comments: { lineComment: string }; wordPattern: string }
    assert.equal(configuration.comments.lineComment, '#')
    assert.ok(new RegExp(configuration.wordPattern).exec('learning_rate')?.[0] === 'learning_rate')
  })
})

describe('language services', () => {
  it('do not know the editor', () => {
    const folder = join(root, 'src/language')
    for (const name of readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts'))) {
      assert.doesNotMatch(readFileSync(join(folder, name), 'utf8'), /from 'vscode'/, name)
    }
  })
})
