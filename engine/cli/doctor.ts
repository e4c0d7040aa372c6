import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import * as os from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { describeError, UnslothError } from '#shared/errors.ts'
import type { DoctorCheck, DoctorResult } from '#shared/protocol.ts'
import { formatBytes } from '#shared/units.ts'
import { native, type NativeDescription } from '../native.ts'
import { projectRoot } from '../projectRoot.ts'
import { cpuQuota, physicalCores } from '../runtime/cores.ts'
import { availableMemory, totalMemory } from '../runtime/memory.ts'

/** What `unsloth doctor` found; its `--json` output. */
export interface DoctorReport extends DoctorResult {
  readonly version: string
  readonly node: string
  readonly platform: string
  readonly cpu: {
    readonly model: string
    readonly logical: number
    /** Threads that the engine computes with when none are asked for. */
    readonly threads: number
    /** Instruction sets that the engine can use here. */
    readonly features: readonly string[]
    readonly float32Kernel?: string
    readonly bfloat16Kernel?: string
  }
  readonly memory: { readonly totalBytes: number; readonly availableBytes: number }
  readonly addon?: string
  readonly gpus: readonly { readonly name: string; readonly memoryBytes: number }[]
  readonly driver?: string
}

type Gpu = DoctorReport['gpus'][number]

/** Version of this program. */
export function programVersion(): string {
  return (JSON.parse(readFileSync(join(projectRoot(), 'package.json'), 'utf8')) as { version: string }).version
}

interface GpuState {
  readonly gpus: readonly Gpu[]
  readonly driver?: string
  /** Why there is no GPU to use. */
  readonly reason?: string
}

/** NVIDIA GPUs as nvidia-smi lists them, with the driver's own word when there are none. */
async function findGpus(): Promise<GpuState> {
  let loaded: string | undefined
  try {
    loaded = /(\d+\.\d+(?:\.\d+)?)/.exec(readFileSync('/proc/driver/nvidia/version', 'latin1'))?.[1]
  } catch {
    if (process.platform === 'linux') return { gpus: [], reason: 'no NVIDIA driver: /proc/driver/nvidia/version does not exist' }
    if (process.platform === 'darwin') return { gpus: [], reason: 'no NVIDIA driver: there is none for macOS' }
  }
  try {
    const query = ['--query-gpu=name,memory.total,driver_version', '--format=csv,noheader,nounits']
    const { stdout } = await promisify(execFile)('nvidia-smi', query, { timeout: 10_000 })
    const rows = stdout
      .trim()
      .split('\n')
      .filter(Boolean)
      .map((line) => line.split(',').map((cell) => cell.trim()))
    const gpus = rows.map(([name = '', mebibytes]) => ({ name, memoryBytes: Number(mebibytes) * 2 ** 20 }))
    const driver = rows[0]?.[2] ?? loaded
    return {
      gpus,
      ...(driver === undefined ? {} : { driver }),
      ...(gpus.length === 0 ? { reason: 'the driver lists no GPU' } : {}),
    }
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === 'ENOENT'
    if (loaded === undefined)
      return {
        gpus: [],
        reason: missing ? 'no NVIDIA driver: nvidia-smi was not found' : `no NVIDIA driver: ${firstLine(error)}`,
      }
    return {
      gpus: [],
      driver: loaded,
      reason: `driver ${loaded} is loaded, but ${missing ? 'nvidia-smi was not found' : `nvidia-smi fails: ${firstLine(error)}`}`,
    }
  }
}

function firstLine(error: unknown): string {
  const { stdout, stderr, message } = error as { stdout?: string; stderr?: string; message?: string }
  return (
    [stderr, stdout, message]
      .find((text) => text !== undefined && text.trim() !== '')
      ?.trim()
      .split('\n')[0] ?? 'unknown error'
  )
}

interface AddonState {
  readonly path?: string
  readonly features: readonly string[]
  readonly float32Kernel?: string
  readonly bfloat16Kernel?: string
  readonly cuda?: NonNullable<NativeDescription['cuda']>
  readonly error?: UnslothError
}

function probeAddon(): AddonState {
  try {
    const { cpu, cuda } = native().describe()
    const features = (
      [
        ['AVX2', cpu.avx2],
        ['AVX-512', cpu.avx512],
        ['AVX-512-BF16', cpu.avx512bf16],
        ['AMX', cpu.amx],
      ] as const
    )
      .filter(([, has]) => has)
      .map(([name]) => name)
    const path = loadedAddon()
    return {
      ...(path === undefined ? {} : { path }),
      features,
      float32Kernel: cpu.float32Kernel,
      bfloat16Kernel: cpu.bfloat16Kernel,
      ...(cuda === undefined ? {} : { cuda }),
    }
  } catch (error) {
    return {
      features: [],
      error: UnslothError.is(error) ? error : new UnslothError('NATIVE', describeError(error), { cause: error }),
    }
  }
}

/** Where the addon was found: the loader of this process remembers it. */
function loadedAddon(): string | undefined {
  return Object.keys(createRequire(import.meta.url).cache).find((path) => path.endsWith('.node'))
}

function checksOf(report: Omit<DoctorReport, 'checks'>, addon: AddonState, gpu: GpuState): DoctorCheck[] {
  const { cpu, memory } = report
  const quota = cpuQuota()
  const cores = `${cpu.threads} of ${cpu.logical} processors used${Number.isFinite(quota) ? `, limited to ${quota.toFixed(1)} by the control group` : ''}`
  const checks: DoctorCheck[] = [
    { name: 'Unsloth', level: 'ok', detail: report.version },
    { name: 'Node', level: 'ok', detail: `${report.node}, ${report.platform}` },
    { name: 'CPU', level: 'ok', detail: cpu.model },
    { name: 'Threads', level: 'ok', detail: cores },
  ]
  if (addon.error !== undefined) {
    checks.push({
      name: 'Addon',
      level: 'error',
      detail: addon.error.message,
      ...(addon.error.hint === undefined ? {} : { hint: addon.error.hint }),
    })
  } else {
    checks.push(
      cpu.features.length > 0
        ? { name: 'Features', level: 'ok', detail: cpu.features.join(', ') }
        : {
            name: 'Features',
            level: 'warning',
            detail: 'none that the engine has faster kernels for',
            hint: 'Training works, slowly: a processor with AVX2 or AVX-512 is several times faster.',
          },
      { name: 'Kernels', level: 'ok', detail: `float32: ${cpu.float32Kernel}; bfloat16: ${cpu.bfloat16Kernel}` },
      { name: 'Addon', level: 'ok', detail: report.addon ?? 'loaded' },
    )
  }
  const low = memory.availableBytes < 2 ** 30
  checks.push({
    name: 'Memory',
    level: low ? 'warning' : 'ok',
    detail: `${formatBytes(memory.availableBytes)} available of ${formatBytes(memory.totalBytes)}`,
    ...(low ? { hint: 'Close other programs; `unsloth finetune --dry-run` shows what a run needs.' } : {}),
  })
  const names = gpu.gpus.map(({ name, memoryBytes }) => `${name} (${formatBytes(memoryBytes)})`).join(', ')
  const { cuda } = addon
  if (gpu.reason !== undefined) checks.push({ name: 'GPU', level: 'info', detail: gpu.reason })
  else if (cuda === undefined)
    checks.push({
      name: 'GPU',
      level: 'info',
      detail: `${names}, driver ${gpu.driver}; not used: this build computes on the CPU only`,
    })
  else if (cuda.gpus.length === 0)
    checks.push({ name: 'GPU', level: 'warning', detail: `${names}, driver ${gpu.driver}; not used`, hint: cuda.problem })
  else {
    const usable = cuda.gpus.map(
      ({ index, name, capability, totalBytes }) => `cuda:${index} ${name} (${capability / 10}, ${formatBytes(totalBytes)})`,
    )
    checks.push({ name: 'GPU', level: 'ok', detail: `${usable.join(', ')}, driver ${gpu.driver}` })
    const library = native().cublasLt()
    const where =
      library?.path === undefined
        ? `${library?.problem ?? 'not looked for'} Our own kernels multiply.`
        : `${library.path}, version ${library.version}`
    checks.push({ name: 'cuBLASLt', level: 'info', detail: where })
  }
  return checks
}

/** Looks at this machine: what the engine can use, and why not more. Never throws: what fails becomes a check. */
export async function doctor(): Promise<DoctorReport> {
  const addon = probeAddon()
  const gpu = await findGpus()
  const processors = os.cpus()
  const report: Omit<DoctorReport, 'checks'> = {
    version: programVersion(),
    node: process.version,
    platform: `${process.platform} ${process.arch}`,
    cpu: {
      model: processors[0]?.model.trim() ?? 'unknown',
      logical: processors.length,
      threads: physicalCores(),
      features: addon.features,
      ...(addon.float32Kernel === undefined ? {} : { float32Kernel: addon.float32Kernel }),
      ...(addon.bfloat16Kernel === undefined ? {} : { bfloat16Kernel: addon.bfloat16Kernel }),
    },
    memory: { totalBytes: totalMemory(), availableBytes: availableMemory() },
    ...(addon.path === undefined ? {} : { addon: addon.path }),
    gpus: gpu.gpus,
    ...(gpu.driver === undefined ? {} : { driver: gpu.driver }),
  }
  return { ...report, checks: checksOf(report, addon, gpu) }
}

const marks = { ok: ' ', info: 'i', warning: '!', error: '✗' } as const

/** The report as a terminal shows it: one line each, and what to do below what is wrong. */
export function formatDoctor({ checks }: DoctorResult): string {
  const width = Math.max(...checks.map(({ name }) => name.length))
  return checks
    .flatMap(({ name, level, detail, hint }) => [
      `${marks[level]} ${name.padEnd(width)}  ${detail}`,
      ...(hint === undefined ? [] : [`  ${' '.repeat(width)}  ${hint}`]),
    ])
    .join('\n')
}

/** 1 when the engine cannot work on this machine. */
export const doctorExitCode = ({ checks }: DoctorResult): number => (checks.some(({ level }) => level === 'error') ? 1 : 0)
