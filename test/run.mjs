// What `npm test` runs after the build: type check, lint, the mocha tests, the native tests. The last line is
// "N passed, N failed"; the exit status is not 0 when anything failed or nothing ran.
//
//   npm test                 everything
//   npm test -- gemm         only test files (or else test names) that contain "gemm"
//
// UNSLOTH_REQUIRE=vscode,cuda,models makes it a failure when that part cannot be tested here. UNSLOTH_LARGE=1 adds commands of the
// processor on matrices of more than 2³¹ elements (9 GB of memory, minutes).
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { findProgram, root, run as runProgram } from '../tools/common.mjs'
import { missingBrowser } from '../tools/browser.mjs'
import { buildTarget, hasCuda } from '../tools/kernels.mjs'
import { missingEditor } from './host/runner/editor.mjs'
import { missingHost } from './host/runner/install.mjs'

const filters = process.argv.slice(2)
const required = (process.env.UNSLOTH_REQUIRE ?? '')
  .split(',')
  .map((name) => name.trim())
  .filter(Boolean)
const total = { passed: 0, failed: 0 }

function count({ passed, failed }) {
  total.passed += passed
  total.failed += failed
}

/** Runs a program of node_modules; resolves to its exit status and, when it is not shown, what it printed. */
function start(script, args, { show = false, env = {} } = {}) {
  const child = spawn(process.execPath, [...script, ...args], {
    cwd: root,
    stdio: ['ignore', show ? 'inherit' : 'pipe', show ? 'inherit' : 'pipe'],
    env: { ...process.env, ...env },
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream?.setEncoding('utf8').on('data', (text) => (output += text))
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (status, signal) => resolve({ passed: status === 0, how: signal ?? `status ${status}`, output }))
  })
}

/** A check that counts as one test. */
async function check(name, script, args) {
  const since = performance.now()
  const { passed, how, output } = await start([join('node_modules', ...script)], args)
  console.log(
    `${passed ? '✓' : '✗'} ${name}: ${passed ? 'passed' : `failed (${how})`} (${((performance.now() - since) / 1000).toFixed(1)} s)`,
  )
  if (!passed) console.log(output.trimEnd())
  count({ passed: Number(passed), failed: Number(!passed) })
}

/** Test files below a folder, as paths from the root. */
function testFiles(folder, suffix) {
  if (!existsSync(join(root, folder))) return []
  return readdirSync(join(root, folder), { recursive: true })
    .map((file) => join(folder, file))
    .filter((file) => file.endsWith(suffix))
    .sort()
}

/** Mocha over some files; a part without a single test, or with a skipped one, has failed. */
async function mocha(name, files, { grep, env } = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'unsloth-test-'))
  const counts = join(folder, 'counts.json')
  console.log(`\n${name}`)
  try {
    const args = [
      '--no-config',
      '--timeout',
      '120000',
      '--reporter',
      join(root, 'test', 'reporter.cjs'),
      '--reporter-option',
      `counts=${counts}`,
      ...(grep === undefined ? [] : ['--grep', grep]),
      ...files,
    ]
    const { passed, how } = await start(['--import', 'tsx', join('node_modules', 'mocha', 'bin', 'mocha.js')], args, {
      show: true,
      env,
    })
    const result = existsSync(counts) ? JSON.parse(readFileSync(counts, 'utf8')) : { passed: 0, failed: 0, pending: 0 }
    const wrong = result.failed + result.pending
    if (wrong === 0 && !passed) console.log(`✗ ${name}: mocha ended early (${how})`)
    else if (wrong === 0 && result.passed === 0) console.log(`✗ ${name}: no test ran`)
    count({ passed: result.passed, failed: wrong > 0 ? wrong : passed && result.passed > 0 ? 0 : 1 })
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** Instruction sets that this machine can run the native tests on, as UNSLOTH_CPU_ISA names them. */
async function instructionSets() {
  const program =
    "const { cpu } = require('./build/cpu/kernels.node').describe(); console.log(['avx2', 'avx512', 'avx512bf16', 'amx'].filter((isa) => cpu[isa]).join(' '))"
  const { output } = await start(['-e', program], [])
  return ['portable', ...output.trim().split(' ').filter(Boolean)]
}

/** Compiles a target of kernels/CMakeLists.txt; a failure is printed and counted, and false. */
function compiles(preset, target) {
  try {
    runProgram(findProgram('cmake'), ['--preset', preset, '-DUNSLOTH_TESTS=ON'], { cwd: join(root, 'kernels'), what: 'cmake' })
    buildTarget(preset, target)
    return true
  } catch (error) {
    console.log(`  ✗ ${target}: ${error.message}`)
    count({ passed: 0, failed: 1 })
    return false
  }
}

/** Runs a program of test/native: its counts when its last line is "NAME: N passed, N failed", else it counts as one test. */
async function runNative(preset, name, label, env = {}) {
  const child = spawn(join(root, 'build', preset, name), [], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let output = ''
  child.stdout.setEncoding('utf8').on('data', (text) => (output += text))
  const passed = await new Promise((resolve) => {
    child.on('error', () => resolve(false))
    child.on('close', (status) => resolve(status === 0))
  })
  const lines = output.trim().split('\n')
  const counts = /: (\d+) passed, (\d+) failed/.exec(lines.at(-1))?.slice(1).map(Number) ?? [Number(passed), Number(!passed)]
  console.log(`  ${passed ? '✓' : '✗'} ${label}: ${lines.join('\n    ')}`)
  count({ passed: counts[0], failed: passed ? counts[1] : Math.max(1, counts[1]) })
}

const programName = (file) => basename(file).replace(/\.\w+$/, '')

/** Programs of test/native, one run for each instruction set; what is large runs with the last, the best, alone. */
async function native(files) {
  console.log('\nnative')
  const sets = await instructionSets()
  for (const name of files.map(programName)) {
    if (!compiles('cpu', name)) continue
    for (const isa of name === largeTest ? sets.slice(-1) : sets)
      await runNative('cpu', name, `${name} on ${isa}`, { UNSLOTH_CPU_ISA: isa })
  }
}

/** Those for a GPU. */
async function nativeCuda(files) {
  console.log('\nnative, on the GPU')
  for (const name of files.map(programName)) if (compiles('cuda', name)) await runNative('cuda', name, name)
}

/** Takes 9 GB of memory: only when asked for. */
const largeTest = 'largeTest'
const programs = testFiles(join('test', 'native'), 'Test.cc').filter(
  (file) => programName(file) !== largeTest || process.env.UNSLOTH_LARGE === '1',
)
const cudaPrograms = testFiles(join('test', 'native'), 'Test.cu')

/** Parts that not every machine can test: where their tests stand, and what is missing here. */
const optionalParts = [
  { name: 'vscode', folders: [join('test', 'webview')], missing: missingBrowser },
  { name: 'vscode', folders: [join('test', 'host')], missing: missingEditor },
  { name: 'vscode', folders: [join('test', 'screens')], missing: missingHost },
  {
    name: 'cuda',
    folders: [join('test', 'cuda')],
    programs: cudaPrograms,
    missing() {
      if (!hasCuda()) return 'this version has no CUDA kernels yet'
      if (!existsSync('/proc/driver/nvidia/version') && findProgram('nvidia-smi') === undefined)
        return 'this machine has no NVIDIA driver'
      return existsSync(join(root, 'build', 'cuda', 'kernels.node'))
        ? undefined
        : 'the CUDA kernels are not built; `npm run build` says why'
    },
  },
]

async function optional(
  { name, folders, missing, programs },
  { files = folders.flatMap((folder) => testFiles(folder, '.test.ts')) } = {},
) {
  const reason = await missing()
  if (reason === undefined) {
    if (files.length > 0) await mocha(name, files)
    if (programs !== undefined) await nativeCuda(programs)
  } else if (required.includes(name)) {
    console.log(`✗ ${name}: required, but not tested: ${reason}`)
    count({ passed: 0, failed: 1 })
  } else console.log(`- ${name}: not tested: ${reason}`)
}

const apart = optionalParts.flatMap(({ folders }) => folders)
const unit = testFiles('test', '.test.ts').filter((file) => !apart.some((folder) => file.startsWith(folder)))
/** `models`: larger real models, which tests look for themselves (test/engine/support.ts). */
const requirable = [...new Set([...optionalParts.map((part) => part.name), 'models'])]
for (const name of required.filter((name) => !requirable.includes(name))) {
  console.log(`✗ UNSLOTH_REQUIRE names ${name}; there are ${requirable.join(', ')}`)
  count({ passed: 0, failed: 1 })
}

if (filters.length > 0) {
  const matches = (file) => filters.some((filter) => file.includes(filter))
  const files = unit.filter(matches),
    chosen = programs.filter(matches),
    onGpu = cudaPrograms.filter(matches)
  if (files.length > 0) await mocha('tests', files)
  else if (chosen.length === 0 && onGpu.length === 0) await mocha('tests', unit, { grep: filters.join('|') })
  if (chosen.length > 0) await native(chosen)
  if (onGpu.length > 0) await optional({ ...optionalParts.find(({ name }) => name === 'cuda'), programs: onGpu }, { files: [] })
} else {
  await Promise.all([
    check('types', ['typescript', 'bin', 'tsc'], ['--noEmit']),
    check('types of the webview', ['typescript', 'bin', 'tsc'], ['--noEmit', '-p', 'webview']),
    check('lint', ['eslint', 'bin', 'eslint.js'], ['.', '--max-warnings', '0']),
    check('format', ['prettier', 'bin', 'prettier.cjs'], ['--check', '--log-level', 'warn', '**/*.{ts,mjs,cjs}']),
  ])
  await mocha('tests', unit)
  await native(programs)
  console.log()
  for (const part of optionalParts) await optional(part)
}

console.log(`\n${total.passed} passed, ${total.failed} failed`)
process.exitCode = total.failed > 0 || total.passed === 0 ? 1 : 0
