import { existsSync, readFileSync, realpathSync, rmSync, statSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import {
  BuildError,
  digest,
  filesBelow,
  findProgram,
  isCurrent,
  markCurrent,
  root,
  run,
  say,
  seconds,
  tryRun,
  windows,
} from './common.mjs'
import { checkVersions, toolchain } from './toolchain.mjs'

const packageVersion = (name) => JSON.parse(readFileSync(join(root, 'node_modules', name, 'package.json'), 'utf8')).version

/** Identity of a program: replaced by an update, it differs. */
const identity = (program) => {
  const real = realpathSync(program)
  const { size, mtimeMs } = statSync(real)
  return `${real} ${size} ${mtimeMs}`
}

/**
 * The generator to configure a build folder with; undefined keeps the one it has. CMake cannot change the place or the
 * compiler of a build folder: such a folder is made anew.
 */
function prepare(folder, { ninja, compiler }) {
  const generator = ninja ? 'Ninja' : windows ? undefined : 'Unix Makefiles'
  const cache = join(folder, 'CMakeCache.txt')
  if (!existsSync(cache)) return generator
  const text = readFileSync(cache, 'utf8')
  const value = (name) => new RegExp(`^${name}:\\w+=(.*)$`, 'm').exec(text)?.[1]
  const usable =
    value('CMAKE_HOME_DIRECTORY') === join(root, 'kernels').replaceAll('\\', '/') &&
    existsSync(value('CMAKE_MAKE_PROGRAM') ?? '') &&
    existsSync(value('CMAKE_CXX_COMPILER') ?? '') &&
    (process.env.CXX === undefined || value('CMAKE_CXX_COMPILER') === compiler)
  if (usable) return undefined
  rmSync(folder, { recursive: true, force: true })
  return generator
}

function compile(preset, tools, definitions) {
  say(`Compiling the ${preset} kernels …`)
  const start = performance.now()
  checkVersions(tools)
  const folder = join(root, 'build', preset)
  const generator = prepare(folder, tools)
  const options = [
    ...(generator === undefined ? [] : ['-G', generator]),
    ...Object.entries(definitions).map(([name, value]) => `-D${name}=${value}`),
  ]
  run(tools.cmake, ['--preset', preset, ...options], { cwd: join(root, 'kernels'), what: 'cmake' })
  buildTarget(preset, 'kernels', tools.cmake)
  say(`Compiled the ${preset} kernels in ${seconds(start)}.`)
}

/** Builds one target of a configured build folder. */
export function buildTarget(preset, target, cmake = toolchain().cmake) {
  const args = [
    '--build',
    join(root, 'build', preset),
    '--config',
    'Release',
    '--target',
    target,
    '--parallel',
    String(availableParallelism()),
  ]
  run(cmake, args, { show: process.stdout.isTTY, what: `Compiling ${target}` })
}

/**
 * Compiles kernels/ by a preset of kernels/CMakePresets.json into build/<preset>/kernels.node, when anything changed.
 * Returns whether it did.
 */
function build(preset, definitions = {}, extra = '') {
  const tools = toolchain()
  const output = join('build', preset, 'kernels.node')
  const key = digest(
    filesBelow('kernels'),
    packageVersion('node-addon-api'),
    packageVersion('node-api-headers'),
    process.platform,
    process.arch,
    identity(tools.compiler),
    process.env.CXXFLAGS ?? '',
    JSON.stringify(definitions),
    extra,
  )
  if (isCurrent(output, key)) return false
  compile(preset, tools, definitions)
  if (!existsSync(join(root, output)))
    throw new BuildError(`The compiler ran, but ${output} was not made.`, 'Remove the folder build and run this again.')
  markCurrent(output, key)
  return true
}

/** The addon that every machine gets; returns whether there was something to compile. */
export const buildCpu = () => build('cpu')

/** Whether kernels/ has a CUDA backend at all. */
export const hasCuda = () => readFileSync(join(root, 'kernels', 'CMakeLists.txt'), 'utf8').includes('UNSLOTH_CUDA')

/** Why the CUDA kernels cannot be built here; undefined when they can. */
function noCuda() {
  if (!hasCuda()) return 'this version has no CUDA kernels yet'
  const nvcc = findNvcc()
  if (nvcc === undefined) return 'nvcc was not found (CUDA 13 or newer is needed)'
  const version = /release (\d+)\.(\d+)/.exec(run(nvcc, ['--version']))
  return version === null || Number(version[1]) < 13
    ? `${nvcc} is version ${version?.slice(1).join('.') ?? 'unknown'}; CUDA 13 or newer is needed`
    : undefined
}

function findNvcc() {
  const homes = [process.env.CUDA_HOME, process.env.CUDA_PATH, '/usr/local/cuda'].filter(Boolean)
  return findProgram('nvcc', ...homes.map((home) => join(home, 'bin', 'nvcc')))
}

/** Every GPU that the kernels run on: fp16 tensor cores and later. */
const everyArchitecture = '75;80;86;89;90a;100;120'

/**
 * What to compile for: `all` for a package; else what UNSLOTH_CUDA_ARCHITECTURES names, the GPUs of this machine, or, where there is
 * none, Ampere, quickly, since nothing will run there. Kernels for Hopper alone are compiled always.
 */
function cudaDefinitions(all) {
  const definitions = (architectures, quick = 'OFF') => ({ UNSLOTH_CUDA_ARCHITECTURES: architectures, UNSLOTH_CUDA_QUICK: quick })
  const { UNSLOTH_CUDA_ARCHITECTURES: named } = process.env
  if (named !== undefined && named !== '') return definitions(named)
  if (all) return definitions(everyArchitecture)
  const smi = findProgram('nvidia-smi')
  const found =
    smi === undefined ? [] : ((tryRun(smi, ['--query-gpu=compute_cap', '--format=csv,noheader']) ?? '').match(/\d+\.\d/g) ?? [])
  const here = [
    ...new Set(found.map((capability) => capability.replace('.', '')).map((number) => (number === '90' ? '90a' : number))),
  ]
  return here.length === 0 ? definitions('80', 'ON') : definitions(here.join(';'))
}

/**
 * The CUDA kernels are built where the toolkit is; without them the engine computes on the CPU. `tell` prints why not. What a package
 * carries (`all`) has to build.
 */
export function buildCuda({ tell, all = false }) {
  const reason = noCuda()
  if (reason !== undefined) {
    if (all) throw new BuildError(`The CUDA kernels cannot be built: ${reason}.`)
    if (tell) say(`CUDA: not built: ${reason}.`)
    return
  }
  try {
    build('cuda', cudaDefinitions(all), identity(findNvcc()))
  } catch (error) {
    if (all || !(error instanceof BuildError) || (process.env.UNSLOTH_REQUIRE ?? '').split(',').includes('cuda')) throw error
    say(`CUDA: not built: ${error.message}`)
  }
}
