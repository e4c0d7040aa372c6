import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Range } from 'vscode-languageserver'
import { codeActions, fixAll } from '../../../src/language/quickFixes.ts'
import { complete } from '../../../src/language/completion.ts'
import { diagnoseSchema } from '../../../src/language/diagnostics.ts'
import { formatEdits } from '../../../src/language/format.ts'
import { hover } from '../../../src/language/hover.ts'
import { inlayHints } from '../../../src/language/hints.ts'
import { migrateForeign } from '../../../src/language/migrate/migrate.ts'
import { Outline } from '../../../src/language/outline.ts'
import { documentSymbols, foldingRanges } from '../../../src/language/symbols.ts'
import { applyEdits, SourceText } from '../../../src/language/text.ts'
import { diagnoseWorld } from '../../../src/language/worldChecks.ts'
import { random, root, world } from './support.ts'

const pieces = [
  '\t',
  '\r',
  '\n',
  '\r\n',
  '  ',
  ':',
  ': ',
  '- ',
  '[',
  ']',
  '{',
  '}',
  '"',
  "'",
  '#',
  ' #',
  '&a ',
  '*a',
  '<<: *a',
  '!!str ',
  '? ',
  '|\n',
  '>-\n',
  '---\n',
  '...\n',
  '%YAML 1.1\n',
  '@',
  '`',
  '\u0000',
  '\u2028',
  '\u0085',
  '\ud800',
  '🦥',
  '\ufeff',
  'é',
  '模型',
  '__proto__: 1\n',
  'constructor:\n  x: 1\n',
  '{{{{[[[[',
  ']]]]}}}}',
  '- - - ',
  ',,,',
  'model: ',
  'lora:\n',
  'training: {',
  'base_model: x\n',
  'datasets:\n',
  'model_name_or_path: y\nstage: sft\n',
  '\\',
  '\\"',
  '1e999',
  '.nan',
  '-',
  ':\n',
  '"\n',
  '# \t',
]

const folder = join(root, 'test/fixtures/recipes')
const sources = [
  ...readdirSync(folder).map((name) => readFileSync(join(folder, name), 'utf8')),
  '',
  'base_model: x\ndatasets:\n  - path: a\n    type: alpaca\nlora_r: 8\n',
]

function damaged(next: (below: number) => number): string {
  let text = sources[next(sources.length)]!
  if (next(3) === 0) text = text.slice(0, next(text.length + 1))
  if (next(4) === 0) text = text.replaceAll('\n', '\r\n')
  for (let count = 1 + next(6); count > 0; count--) {
    const at = next(text.length + 1)
    const piece = next(5) === 0 ? text.slice(at, at + next(80)) : pieces[next(pieces.length)]!
    text =
      text.slice(0, at) + (next(8) === 0 ? piece.repeat(1 + next(60)) : piece) + text.slice(at + (next(2) === 0 ? 0 : next(30)))
  }
  return text
}

/** Every range is inside of the text and begins before it ends. */
function inside(source: SourceText, { start, end }: Range, what: string): void {
  for (const { line, character } of [start, end]) {
    assert.ok(
      line >= 0 && line < source.lineCount && character >= 0 && character <= source.line(line).length,
      `${what} ${line}:${character}`,
    )
  }
  assert.ok(start.line < end.line || (start.line === end.line && start.character <= end.character), what)
}

describe('recipe services on damaged text', () => {
  it('never fail, never hang, and stay inside of the text', async () => {
    for (let seed = 1; seed <= 200; seed++) {
      const next = random(seed)
      const text = damaged(next)
      const source = new SourceText(text)
      const began = process.cpuUsage()
      const uri = 'file:///f.yaml'
      const where = `seed ${seed}`
      const { problems, recipe } = diagnoseSchema(source, 'f.yaml')
      for (const problem of [...problems, ...(await diagnoseWorld(new Outline(source), recipe, world()))]) {
        inside(source, problem.range, where)
        for (const action of codeActions(source, uri, problem.range, [problem])) {
          for (const edit of action.edit!.changes![uri]!) inside(source, edit.range, `${where} ${action.title}`)
          applyEdits(source, action.edit!.changes![uri]!)
        }
      }
      for (let count = 0; count < 12; count++) {
        const position = source.position(next(text.length + 1))
        for (const item of await complete(source, position, world())) {
          const edit = item.textEdit as { range: Range; newText: string }
          inside(source, edit.range, `${where} ${item.label}`)
          assert.equal(edit.range.start.line, edit.range.end.line, where)
          assert.ok(
            edit.range.start.line === position.line &&
              edit.range.start.character <= position.character &&
              edit.range.end.character >= position.character,
            `${where}: ${item.label} ${JSON.stringify(edit.range)} ${JSON.stringify(position)} ${JSON.stringify(source.line(position.line))}`,
          )
        }
        await hover(source, position, world())
      }
      for (const edit of formatEdits(source)) inside(source, edit.range, where)
      for (const range of foldingRanges(source))
        assert.ok(range.startLine <= range.endLine && range.endLine < source.lineCount, where)
      documentSymbols(source)
      await inlayHints(new Outline(source), recipe, world())
      migrateForeign(text)
      if (seed % 10 === 0) fixAll(text, (current) => diagnoseSchema(current, 'f.yaml').problems, applyEdits)
      assert.ok(process.cpuUsage(began).user < 2e6, `${where} took too long`)
    }
  })

  it('put up with deep nesting and long lines', async () => {
    for (const text of [
      '['.repeat(20_000),
      '{a: '.repeat(20_000),
      `model: ${'x'.repeat(200_000)}`,
      'a:\n'.repeat(20_000),
      `lora: {${'r: 1, '.repeat(5000)}`,
      '- '.repeat(50_000),
      `# ${'"'.repeat(100_000)}`,
      `x: ${'"\\'.repeat(50_000)}`,
    ]) {
      const source = new SourceText(text)
      const began = process.cpuUsage()
      diagnoseSchema(source, 'f.yaml')
      await complete(source, source.position(text.length), world())
      documentSymbols(source)
      formatEdits(source)
      assert.ok(process.cpuUsage(began).user < 3e6, text.slice(0, 20))
    }
  })
})
