import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, extname, join } from 'node:path'
import { loadTokenizer } from '../../engine/data/tokenizer.ts'
import { doctor, doctorExitCode, formatDoctor } from '../../engine/cli/doctor.ts'
import { commandNames } from '../../engine/graph/commands.ts'
import { projectRoot } from '../../engine/projectRoot.ts'
import { readRecipe } from '../../engine/recipe/parseRecipe.ts'
import { readmeWithSettings } from '../../tools/settingsTable.mjs'
import { notices } from '../../tools/notices.mjs'

const root = projectRoot()
const text = (...path: string[]): string => readFileSync(join(root, ...path), 'utf8')

interface Manifest {
  readonly engines: { readonly node: string }
  readonly dependencies?: Readonly<Record<string, string>>
  readonly devDependencies: Readonly<Record<string, string>>
}

const generated = new Set(['node_modules', 'dist', 'build', 'outputs', '.git', '.vscode-test'])

function* files(folder = ''): Generator<string> {
  for (const entry of readdirSync(join(root, folder), { withFileTypes: true })) {
    if (generated.has(entry.name)) continue
    const path = join(folder, entry.name)
    if (entry.isDirectory()) yield* files(path)
    else if (entry.isFile()) yield path
  }
}

describe('the project', () => {
  it('pins every package to an exact version', () => {
    const { dependencies = {}, devDependencies } = JSON.parse(text('package.json')) as Manifest
    const loose = Object.entries({ ...dependencies, ...devDependencies }).filter(
      ([, version]) => !/^\d+\.\d+\.\d+$/.test(version),
    )
    assert.deepEqual(loose, [])
  })

  it('locks packages without naming a registry', () => {
    const lock = JSON.parse(text('package-lock.json')) as {
      packages: Record<string, { resolved?: string; integrity?: string; link?: boolean }>
    }
    const entries = Object.entries(lock.packages).filter(([path]) => path !== '')
    assert.ok(entries.length > 50)
    assert.deepEqual(
      entries.filter(([, entry]) => entry.resolved !== undefined),
      [],
    )
    assert.deepEqual(
      entries.filter(([, entry]) => entry.integrity === undefined),
      [],
    )
  })

  it('asks for a build when a source of the engine is newer than it, but not for what runs of the starter leave there', () => {
    const folder = mkdtempSync(join(tmpdir(), 'engine-'))
    const write = (file: string, contents: string) => {
      mkdirSync(join(folder, dirname(file)), { recursive: true })
      writeFileSync(join(folder, file), contents)
    }
    const start = () => spawnSync(process.execPath, [join(folder, 'engine', 'unsloth.mjs')], { encoding: 'utf8' })
    try {
      write('package.json', '{"type": "module"}')
      write('src/shared/errors.ts', '')
      write('engine/main.ts', '')
      write('engine/unsloth.mjs', text('engine', 'unsloth.mjs'))
      write('dist/engine.mjs', 'export const main = () => 0')
      write('engine/starter/outputs/run/run.json', '{}')
      const later = new Date(Date.now() + 60_000)
      utimesSync(join(folder, 'engine/starter/outputs/run/run.json'), later, later)
      assert.deepEqual([start().status, start().stderr], [0, ''])
      for (const source of ['engine/verify/figures.json', 'src/shared/units.ts']) {
        write(source, '{}')
        utimesSync(join(folder, source), later, later)
        assert.match(start().stderr, /older sources.*npm run build/)
        rmSync(join(folder, source))
      }
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  it('keeps files short enough to read in one sitting', () => {
    const code = new Set(['.ts', '.mts', '.mjs', '.cjs', '.cc', '.h', '.inc', '.cu', '.cuh'])
    const long = [...files()].filter((file) => code.has(extname(file)) && text(file).split('\n').length > 501)
    assert.deepEqual(long, [])
  })

  it('names no place of one machine', () => {
    const machine = /(?<![\w.}…/-])\/(?:work|root|home\/\w+)\/(?:main|shared|\.)|https?:\/\/registry\.|\/\/[\w.-]+\.internal\b/
    const readable = new Set([
      '.ts',
      '.mts',
      '.mjs',
      '.cjs',
      '.cc',
      '.h',
      '.inc',
      '.cu',
      '.md',
      '.json',
      '.yaml',
      '.yml',
      '.txt',
      '.def',
      '',
      '.html',
      '.css',
    ])
    const found = [...files()].filter((file) => readable.has(extname(file)) && machine.test(text(file)))
    assert.deepEqual(found, [])
  })

  it('gives TypeScript and C++ the same list of commands', () => {
    const ops = [...text('kernels', 'core', 'ops.def').matchAll(/^UNSLOTH_OP\((\w+)\)/gm)].map((match) => match[1])
    assert.deepEqual(ops, [...commandNames])
  })

  it('leaves no test out', () => {
    const skipped = [...files('test')].filter(
      (file) => file.endsWith('.test.ts') && /^\s*(?:describe|it)\.(?:only|skip)\b|\bthis\.skip\(/m.test(text(file)),
    )
    assert.deepEqual(skipped, [])
  })

  it('documents the settings of the editor', () => {
    assert.equal(text('README.md'), readmeWithSettings(), 'not current: run `npm run docs`')
  })

  it('lists the licences of what it contains', async () => {
    assert.equal(text('THIRD_PARTY_NOTICES.md'), await notices(), 'not current: run `npm run docs`')
    assert.match(text('LICENSE'), /Apache License\s+Version 2\.0/)
    assert.match(text('engine', 'starter', 'model', 'LICENSE'), /MIT License/)
  })
})

describe('imports', () => {
  const forbidden: readonly (readonly [file: string, line: string])[] = [
    ['src/shared/probe.ts', "import 'node:fs'"],
    ['src/shared/probe.ts', "import 'vscode'"],
    ['src/shared/probe.ts', "import '../../engine/native.ts'"],
    ['engine/train/probe.ts', "import 'vscode'"],
    ['engine/train/probe.ts', "import '../../src/extension.ts'"],
    ['engine/graph/probe.ts', "import 'vscode'"],
    ['engine/graph/probe.ts', "import '../../src/extension.ts'"],
    ['engine/graph/probe.ts', "import 'node:fs'"],
    ['engine/graph/probe.ts', "import '../native.ts'"],
    ['engine/model/probe.ts', "import '../train/trainer.ts'"],
    ['build.mjs', "import 'esbuild'"],
  ]
  const allowed: typeof forbidden = [
    ['src/shared/probe.ts', "import './errors.ts'"],
    ['engine/train/probe.ts', "import '#shared/errors.ts'"],
    ['engine/train/probe.ts', "import 'node:fs'"],
    ['engine/graph/probe.ts', "import './dtype.ts'"],
    ['build.mjs', "import 'node:fs'"],
    ['build.mjs', "import './tools/common.mjs'"],
  ]

  it('run in one direction', async () => {
    const { Linter } = await import('eslint')
    const { default: config } = (await import(join(root, 'eslint.config.mjs'))) as {
      default: { files?: string[]; rules?: Record<string, unknown> }[]
    }
    const rule = 'no-restricted-imports'
    const rules = config
      .filter(({ files: patterns, rules: own }) => patterns !== undefined && own?.[rule] !== undefined)
      .map(({ files: patterns, rules: own }) => ({ files: patterns!, rules: { [rule]: own![rule] as ['error', object] } }))
    const refused = ([file, line]: readonly [string, string]): boolean =>
      new Linter({ cwd: root })
        .verify(line, [{ files: ['**/*.ts', '**/*.mjs'] }, ...rules], { filename: join(root, file) })
        .some(({ ruleId }) => ruleId === rule)
    assert.deepEqual(
      forbidden.filter((probe) => !refused(probe)),
      [],
      'should be refused',
    )
    assert.deepEqual(allowed.filter(refused), [], 'should be allowed')
  })
})

describe('the starter', () => {
  it('has a recipe without a complaint, real text and a tokenizer that covers it', async () => {
    const { recipe, warnings } = readRecipe(join(root, 'engine', 'starter', 'finetune.yaml'), {})
    assert.deepEqual(warnings, [])
    assert.equal(recipe.lora.lora_r, 16)
    const rows = text('engine', 'starter', 'fables.jsonl')
      .trimEnd()
      .split('\n')
      .map((line) => (JSON.parse(line) as { text: string }).text)
    assert.equal(rows.length, 253)
    const tokenizer = await loadTokenizer(join(root, 'engine', 'starter', 'model'))
    for (const row of rows) {
      const ids = tokenizer.encode(row)
      assert.equal(tokenizer.decode(ids), row)
      assert.ok(ids.length + 2 <= recipe.training.max_seq_length, row)
    }
  })
})

describe('doctor', () => {
  it('says what the machine has and why it has no more', async () => {
    const report = await doctor()
    assert.equal(doctorExitCode(report), 0, formatDoctor(report))
    assert.ok(report.cpu.threads >= 1 && report.cpu.threads <= report.cpu.logical)
    assert.ok(report.memory.availableBytes > 0 && report.memory.availableBytes <= report.memory.totalBytes)
    const names = report.checks.map(({ name }) => name)
    for (const name of ['Node', 'CPU', 'Threads', 'Kernels', 'Addon', 'Memory', 'GPU']) assert.ok(names.includes(name), name)
    assert.match(formatDoctor(report), /^ {2}Kernels +float32: .+; bfloat16: .+$/m)
    if (report.gpus.length === 0)
      assert.match(
        report.checks.find(({ name }) => name === 'GPU')!.detail,
        /no NVIDIA driver: |driver .* is loaded|lists no GPU/,
      )
  })

  it('turns a missing addon into a check with its cure', () => {
    const folder = mkdtempSync(join(tmpdir(), 'unsloth-doctor-'))
    try {
      const script = `const { doctor, doctorExitCode, formatDoctor } = await import('./engine/cli/doctor.ts'); const report = await doctor(); console.log(formatDoctor(report)); process.exit(doctorExitCode(report))`
      const { status, stdout } = spawnSync(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
        cwd: root,
        encoding: 'utf8',
        env: { ...process.env, UNSLOTH_ADDON: join(folder, 'none.node') },
      })
      assert.equal(status, 1)
      assert.match(stdout, /✗ Addon +The compute addon was not found at .*none\.node\.\n +Run `npm run build`/)
    } finally {
      rmSync(folder, { recursive: true })
    }
  })
})
