import assert from 'node:assert/strict'
import { spawn, type ChildProcess } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { EventRecord } from '#shared/metrics.ts'
import type { Recipe } from '#shared/recipe.ts'
import { executeRun } from '../../engine/cli/runLauncher.ts'
import { projectRoot } from '../../engine/projectRoot.ts'
import { formatRecipe } from '../../engine/recipe/formatRecipe.ts'
import { parseRecipe } from '../../engine/recipe/parseRecipe.ts'
import { RunDirectory } from '../../engine/run/runDirectory.ts'
import type { RunEvents } from '../../engine/train/trainingRun.ts'
export { failure } from '../unit/io/support.ts'
export { ownRuntimeFolder, temporaryFolder } from '../unit/run/support.ts'

/** The program as users start it. */
export const program = join(projectRoot(), 'engine', 'unsloth.mjs')
/** The bundled model of 260 thousand parameters: real, and a step takes milliseconds. */
export const starter = join(projectRoot(), 'engine', 'starter', 'model')
export const fixtures = join(projectRoot(), 'test', 'fixtures', 'engine')

/** The texts of the bundled fables, cut to so many characters. */
export function fables(count: number, characters = 220): { text: string }[] {
  const lines = readFileSync(join(starter, '..', 'fables.jsonl'), 'utf8')
    .trimEnd()
    .split('\n')
    .slice(0, count)
  return lines.map((line) => ({ text: (JSON.parse(line) as { text: string }).text.slice(0, characters) }))
}

export function writeJsonl(path: string, rows: readonly unknown[]): string {
  writeFileSync(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''))
  return path
}

type Section = Readonly<Record<string, unknown>>
export interface RecipeSections {
  readonly model?: string | { readonly name: string; readonly fix_tokenizer?: boolean; readonly dtype?: string }
  readonly data?: Section
  readonly training?: Section
  readonly lora?: Section
  readonly save?: Section
  readonly logging?: Section
}

/** A recipe that trains the starter on a few fables in `folder`, with the given keys laid over it. */
export function makeRecipe(
  folder: string,
  { model = starter, data, training, lora, save, logging }: RecipeSections = {},
): Recipe {
  mkdirSync(folder, { recursive: true })
  const file = join(folder, 'fables.jsonl')
  if (!existsSync(file)) writeJsonl(file, fables(24))
  const value = {
    version: 1,
    model,
    logging,
    data: { local_dataset: file, ...data },
    training: {
      output_dir: join(folder, 'outputs'),
      max_seq_length: 256,
      batch_size: 4,
      gradient_accumulation_steps: 1,
      max_steps: 4,
      learning_rate: 2e-3,
      warmup_steps: 0,
      threads: 1,
      ...training,
    },
    lora: { lora_r: 4, lora_alpha: 8, ...lora },
    save: { method: ['lora'], ...save },
  }
  return parseRecipe(JSON.stringify(value), 'test.yaml').recipe
}

export const createRun = (recipe: Recipe): RunDirectory =>
  RunDirectory.create(recipe.training.output_dir, 'test', formatRecipe(recipe))

/** Trains in this process. */
export async function train(recipe: Recipe, events: RunEvents = {}): Promise<string> {
  const { dir } = createRun(recipe)
  await executeRun(dir, events)
  return dir
}

export const adapterBytes = (dir: string): Buffer => readFileSync(join(dir, 'adapter', 'adapter_model.safetensors'))

/** What metrics.jsonl says about each step and evaluation, without times and speeds. */
export function metricsOf(dir: string): Record<string, unknown>[] {
  const lines = readFileSync(join(dir, 'metrics.jsonl'), 'utf8').trimEnd().split('\n')
  const measured = new Set(['time', 'tokens_per_second', 'memory_bytes', 'eval_runtime'])
  return lines
    .map((line) => JSON.parse(line) as Record<string, unknown>)
    .filter(({ type }) => type !== 'event')
    .map((record) => Object.fromEntries(Object.entries(record).filter(([key]) => !measured.has(key))))
}

export const losses = (dir: string): number[] =>
  metricsOf(dir)
    .filter(({ type }) => type === 'step')
    .map(({ loss }) => loss as number)

export const eventsOf = (dir: string): EventRecord[] =>
  readFileSync(join(dir, 'metrics.jsonl'), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as EventRecord)
    .filter(({ type }) => type === 'event')

/** ‖a − b‖ / ‖b‖ */
export function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assert.equal(a.length, b.length)
  let difference = 0
  let size = 0
  for (let i = 0; i < b.length; ++i) {
    difference += (a[i]! - b[i]!) ** 2
    size += b[i]! ** 2
  }
  return Math.sqrt(difference / size)
}

export function assertClose(a: ArrayLike<number>, b: ArrayLike<number>, tolerance: number, what: string): void {
  const error = relativeError(a, b)
  assert.ok(error <= tolerance, `${what}: relative error ${error}, allowed ${tolerance}`)
}

export interface Ended {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

export interface ProgramOptions {
  readonly cwd?: string
  readonly env?: NodeJS.ProcessEnv
  readonly input?: string
}

const children = new Set<ChildProcess>()

/** Ends, after each test, the processes that a failed one has left. */
export function endChildren(): void {
  afterEach(() => {
    for (const child of children) child.kill('SIGKILL')
  })
}

/** Starts the program; `ended` settles with everything that it printed. */
export function startProgram(
  args: readonly string[],
  options: ProgramOptions = {},
): { child: ChildProcess; ended: Promise<Ended> } {
  const child = spawn(process.execPath, [program, ...args], {
    cwd: options.cwd,
    env: { ...process.env, ...options.env },
    stdio: 'pipe',
  })
  children.add(child)
  child.once('exit', () => children.delete(child))
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  child.stdin.on('error', () => undefined)
  if (options.input !== undefined) child.stdin.end(options.input)
  const ended = new Promise<Ended>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code, signal) => resolve({ code, signal, stdout, stderr }))
  })
  return { child, ended }
}

export const runProgram = (args: readonly string[], options: ProgramOptions = {}): Promise<Ended> =>
  startProgram(args, options).ended

/** Looks every few milliseconds until `look` finds something. */
export async function until<T>(
  look: () => T | undefined | false | Promise<T | undefined | false>,
  what: string,
  milliseconds = 90_000,
): Promise<T> {
  const deadline = performance.now() + milliseconds
  for (;;) {
    const found = await look()
    if (found !== undefined && found !== false) return found
    if (performance.now() > deadline) throw new Error(`waited ${milliseconds} ms in vain for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

const larger = process.env.UNSLOTH_TEST_MODELS ?? join(projectRoot(), '..', 'shared')

/**
 * A model or reference that is too large to be bundled, by its path in the folder of larger test files (UNSLOTH_TEST_MODELS,
 * or `shared` beside the project). Where UNSLOTH_REQUIRE names `models` a missing one is an error; else one line tells of it.
 */
export function largeFile(...path: readonly string[]): string | undefined {
  const found = join(larger, ...path)
  if (existsSync(found)) return found
  if ((process.env.UNSLOTH_REQUIRE ?? '').split(',').includes('models'))
    throw new Error(`UNSLOTH_REQUIRE asks for models, but ${found} is not there`)
  console.log(`      not compared: ${found} is not there`)
  return undefined
}
