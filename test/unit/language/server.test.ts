import assert from 'node:assert/strict'
import { cpSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import type {
  CodeAction,
  CodeLens,
  CompletionItem,
  Diagnostic,
  DocumentSymbol,
  FoldingRange,
  Hover,
  InlayHint,
  TextEdit,
} from 'vscode-languageserver'
import { recipeFields } from '#shared/recipe.ts'
import { bundleServer, Client, random, root, temporaryFolder } from './support.ts'

describe('language server over stdio', () => {
  const folder = temporaryFolder()
  const uri = pathToFileURL(join(folder, 'finetune.yaml')).href
  const textDocument = { uri }
  let client: Client

  before(async () => {
    cpSync(join(root, 'engine/starter/model'), join(folder, 'model'), { recursive: true })
    writeFileSync(
      join(folder, 'train.jsonl'),
      Array.from({ length: 40 }, (_, index) => JSON.stringify({ text: `once upon a time ${index}` })).join('\n'),
    )
    await bundleServer()
    client = await Client.start(folder)
  })

  after(async () => assert.equal(await client.stop(), 0))

  const good =
    'version: 1\nmodel: ./model\ndata:\n  local_dataset: train.jsonl\ntraining:\n  max_seq_length: 128\n  num_epochs: 2\n  batch_size: 2\n  learning_rate: 0.0002\nlora:\n  lora_r: 8\n'

  it('finds nothing wrong with a good recipe, and tells what follows from it', async () => {
    assert.deepEqual(await client.show(uri, good), [])
    const lenses = await client.request<CodeLens[]>('textDocument/codeLens', { textDocument })
    assert.deepEqual(lenses.map(({ command }) => command!.title).slice(0, 3), ['▶ Fine-tune', 'Dry run', 'Preview data'])
    assert.match(lenses[3]!.command!.title, /^[\d.]+( [KMG]B)? of [\d.]+ [MGT]B$/)
    assert.deepEqual(lenses[0]!.command!.arguments, [uri])
    const range = { start: { line: 0, character: 0 }, end: { line: 20, character: 0 } }
    const hints = await client.request<InlayHint[]>('textDocument/inlayHint', { textDocument, range })
    assert.deepEqual(hints.map(({ position }) => position.line).sort(), [10, 5, 6, 7].sort())
    assert.ok(
      hints.some(({ label }) => label === '10 steps') && hints.some(({ label }) => (label as string).includes('trainable')),
    )
  })

  it('completes and explains every key', async () => {
    for (const section of new Set(recipeFields.map((field) => field.section))) {
      const own = recipeFields.filter((field) => field.section === section)
      await client.connection.sendNotification('textDocument/didChange', {
        textDocument: { uri, version: 1000 },
        contentChanges: [{ text: `${section}:\n  \n${own.map(({ key }) => `  ${key}: 1\n`).join('')}` }],
      })
      for (const [index, { path }] of own.entries()) {
        const found = await client.request<Hover>('textDocument/hover', {
          textDocument,
          position: { line: index + 2, character: 3 },
        })
        assert.ok((found.contents as { value: string }).value.includes(path), path)
      }
      await client.connection.sendNotification('textDocument/didChange', {
        textDocument: { uri, version: 1001 },
        contentChanges: [{ text: `${section}:\n  ` }],
      })
      const items = await client.request<CompletionItem[]>('textDocument/completion', {
        textDocument,
        position: { line: 1, character: 2 },
      })
      for (const { key } of own)
        assert.ok(
          items.some(({ label }) => label === key),
          key,
        )
    }
  })

  it('offers the models of the folder', async () => {
    await client.show(uri, 'model: ')
    const items = await client.request<CompletionItem[]>('textDocument/completion', {
      textDocument,
      position: { line: 0, character: 7 },
    })
    assert.deepEqual(
      items.map(({ label }) => label),
      ['./model', 'stories260k'],
    )
  })

  it('reports each kind of problem with its code', async () => {
    const head = 'model: ./model\ndata:\n  local_dataset: train.jsonl\n'
    const cases: Record<string, string> = {
      syntax: 'model: [',
      duplicate_key: `${head}model: x\n`,
      unknown_key: `${head}traning:\n  max_steps: 1\n`,
      wrong_section: `${head}lora_r: 8\n`,
      type: `${head}training:\n  max_steps: x\n`,
      range: `${head}training:\n  batch_size: 0\n`,
      value: `${head}training:\n  optim: adam\n`,
      missing: 'data:\n  local_dataset: train.jsonl\n',
      conflict: `${head}training:\n  num_epochs: 0\n`,
      unavailable: `${head}hub:\n  push: true\n  repo_id: a/b\n`,
      secret: `${head}hub:\n  token: x\n`,
      empty: `${head}training:\n  batch_size:\n`,
      ineffective: `${head}training:\n  eval_steps: 5\n`,
      foreign: 'base_model: x\ndatasets:\n  - path: a/b\n    type: alpaca\n',
      file_missing: 'model: ./gone\ndata:\n  local_dataset: train.jsonl\n',
      model_missing: 'model: no/such\ndata:\n  local_dataset: train.jsonl\n',
      sequence_length: `${head}training:\n  max_seq_length: 4096\n`,
      target_missing: `${head}lora:\n  target_modules: [c_attn]\n`,
      layer_range: `${head}lora:\n  layers_to_transform: [5]\n`,
      column_missing: `${head}  format_type: alpaca\n`,
      data_truncated: `${head}training:\n  max_seq_length: 4\n`,
    }
    for (const [code, text] of Object.entries(cases)) {
      const found = await client.show(uri, text, (diagnostics) => diagnostics.some((diagnostic) => diagnostic.code === code))
      const diagnostic = found.find((candidate) => candidate.code === code)!
      assert.ok((diagnostic.message as string).length > 10 && diagnostic.source === 'unsloth', code)
      const actions = await client.request<CodeAction[]>('textDocument/codeAction', {
        textDocument,
        range: diagnostic.range,
        context: { diagnostics: [diagnostic] },
      })
      if (!['syntax', 'model_missing', 'file_missing', 'layer_range', 'column_missing'].includes(code))
        assert.ok(actions.length > 0, code)
    }
  })

  it('counts in UTF-16 units behind wide characters and CRLF', async () => {
    const text = '# 🦥\r\nmodel: ./model\r\ndata: {local_dataset: train.jsonl, "🦥": 1}\r\n'
    const [problem] = await client.show(uri, text)
    const line = 'data: {local_dataset: train.jsonl, "🦥": 1}'
    assert.deepEqual(problem!.range, {
      start: { line: 2, character: line.indexOf('"') },
      end: { line: 2, character: line.indexOf(': 1') },
    })
  })

  it('follows edits of parts of the text', async () => {
    await client.show(uri, good)
    await client.connection.sendNotification('textDocument/didChange', {
      textDocument: { uri, version: 2000 },
      contentChanges: [{ range: { start: { line: 10, character: 0 }, end: { line: 10, character: 0 } }, text: '  \n' }],
    })
    const items = await client.request<CompletionItem[]>('textDocument/completion', {
      textDocument,
      position: { line: 10, character: 2 },
    })
    assert.ok(items.some(({ label }) => label === 'lora_alpha') && !items.some(({ label }) => label === 'lora_r'))
    assert.deepEqual(
      (await client.request<DocumentSymbol[]>('textDocument/documentSymbol', { textDocument })).map(({ name }) => name),
      ['version', 'model', 'data', 'training', 'lora'],
    )
    assert.equal((await client.request<FoldingRange[]>('textDocument/foldingRange', { textDocument })).length, 3)
    const edits = await client.request<TextEdit[]>('textDocument/formatting', {
      textDocument,
      options: { tabSize: 2, insertSpaces: true },
    })
    assert.equal(edits.length, 1)
  })

  it('migrates on request', async () => {
    const { text } = await client.request<{ text: string }>('unsloth/migrate', {
      text: 'model_name_or_path: x/y\nstage: sft\ndataset: a\n',
    })
    assert.match(text, /^version: 1\nmodel: x\/y\n/)
    assert.equal(await client.request('unsloth/migrate', { text: good }), null)
  })

  it('shows free memory of an engine that runs', async () => {
    await client.show(uri, good)
    await client.connection.sendNotification('unsloth/devices', {
      devices: [{ id: 'cuda:0', label: 'GPU', freeBytes: 2 ** 34, totalBytes: 24 * 2 ** 30 }],
    })
    const lenses = await client.request<CodeLens[]>('textDocument/codeLens', { textDocument })
    assert.match(lenses[3]!.command!.title, / of 24 GB$/)
    await client.connection.sendNotification('unsloth/devices', { devices: null })
  })

  it('speaks the language of the editor', async () => {
    const german = await Client.start(folder, undefined, {
      'Dry run': 'Probelauf',
      'there is no {0} {1}': 'kein {0} {1}',
      'Resume step {0}': 'Weiter ab {0}',
      '{0} steps': '{0} Schritte',
      Availability: 'Verfügbarkeit',
      '{0}{1} must be {2}; {3} is not{4}': '{0}{1} muss {2} sein, {3} ist es nicht{4}',
      'a whole number {0}': 'eine ganze Zahl {0}',
      'from {0} to {1}': 'von {0} bis {1}',
      '; did you mean {0}?': '; ist {0} gemeint?',
      '{0}.{1} is not a key of a recipe{2}': '{0}.{1} ist kein Schlüssel{2}',
      'a tab is not allowed as indentation; use two spaces': 'kein Tabulator als Einzug',
    })
    try {
      await german.show(uri, good)
      const lenses = await german.request<CodeLens[]>('textDocument/codeLens', { textDocument })
      assert.deepEqual(
        lenses.slice(0, 2).map(({ command }) => command!.title),
        ['▶ Fine-tune', 'Probelauf'],
      )
      const range = { start: { line: 0, character: 0 }, end: { line: 20, character: 0 } }
      const hints = await german.request<InlayHint[]>('textDocument/inlayHint', { textDocument, range })
      assert.ok(hints.some(({ label }) => label === '10 Schritte'))
      const messages = async (text: string): Promise<string[]> =>
        (await german.show(uri, text)).map(({ message }) => (typeof message === 'string' ? message : message.value))
      assert.deepEqual(await messages(good.replace('batch_size: 2', 'batch_size: 0\n  max_stepz: 2')), [
        'training.batch_size muss eine ganze Zahl von 1 bis 4096 sein, 0 ist es nicht',
        'training.max_stepz ist kein Schlüssel; ist max_steps gemeint?',
      ])
      assert.ok((await messages('model: x\ntraining:\n\tmax_steps: 1\n')).includes('kein Tabulator als Einzug'))
    } finally {
      await german.stop()
    }
  })

  it('lives through broken texts and requests beyond their end', async () => {
    const pieces = ['\t', ':', '- ', '[', '{', '"', "'", '\r', '\n', '🦥', '\u0000', '&a', '*a', '|', '#', 'lora:\n  ']
    for (let seed = 1; seed <= 60; seed++) {
      const next = random(seed)
      const at = next(good.length)
      const text = good.slice(0, at) + pieces[next(pieces.length)]!.repeat(1 + next(30)) + good.slice(at + next(20))
      await client.connection.sendNotification('textDocument/didChange', {
        textDocument: { uri, version: 3000 + seed },
        contentChanges: [{ text }],
      })
      const position = { line: next(20), character: next(80) }
      await client.request('textDocument/completion', { textDocument, position })
      await client.request('textDocument/hover', { textDocument, position })
      await client.request('textDocument/documentSymbol', { textDocument })
      await client.request('textDocument/codeAction', {
        textDocument,
        range: { start: position, end: position },
        context: { diagnostics: [] },
      })
    }
    assert.deepEqual(client.logs, [])
    const problems: Diagnostic[] = await client.show(uri, good)
    assert.deepEqual(problems, [])
  })

  it('answers nothing for a document that is not open', async () => {
    assert.deepEqual(
      await client.request('textDocument/completion', {
        textDocument: { uri: 'file:///none.yaml' },
        position: { line: 0, character: 0 },
      }),
      [],
    )
    const untitled = 'untitled:Untitled-1'
    const problems = await client.show(untitled, 'model: x/y\ndata:\n  dataset: a/b\n')
    assert.deepEqual(problems, [])
  })
})
