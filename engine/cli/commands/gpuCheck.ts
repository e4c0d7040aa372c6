import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { describeError, UnslothError } from '#shared/errors.ts'
import { formatBytes } from '#shared/units.ts'
import { benchStep, type StepBench } from '../../bench/step.ts'
import { compareLoading } from '../../gpucheck/compareLoading.ts'
import { compareOps, type OpResult } from '../../gpucheck/compareOps.ts'
import { compareTraining, type TrainingComparison } from '../../gpucheck/compareTraining.ts'
import { computeModes, numbersOf } from '../../gpucheck/computeModes.ts'
import type { Compute } from '../../graph/target.ts'
import { chooseDevice, usableGpus } from '../../runtime/chooseDevice.ts'
import { Runtime, type DeviceChoice } from '../../runtime/runtime.ts'
import { compare } from '../../verify/compare.ts'
import { CaseComputation } from '../../verify/compute.ts'
import { Golden } from '../../verify/golden.ts'
import type { CommandArgs } from '../commandArgs.ts'

interface GoldenResult {
  readonly case: string
  readonly compute: Compute
  readonly quantities: number
  readonly failed: readonly string[]
}

/** Compares a GPU with the processor, command by command and in training, and measures it: one table, or JSON. */
export async function gpuCheckCommand({ positionals, flags }: CommandArgs<'gpu-check'>): Promise<number> {
  const gpu = chooseDevice(flags.device)
  const { gpus, problem } = usableGpus()
  if (gpu.kind === 'cpu')
    throw new UnslothError('GPU', problem || 'There is no GPU to check.', {
      hint: '`unsloth doctor` says what this machine has.',
    })
  const cpu = chooseDevice('cpu')
  const opsAlone = flags.ops || positionals.length > 0
  const ops: OpResult[] = []
  const training: TrainingComparison[] = []
  const goldens: GoldenResult[] = []
  const say = flags.json ? () => undefined : (line: string) => console.log(line)
  const { name, capability, totalBytes } = gpus.find(({ index }) => index === gpu.index)!
  const modes = flags.compute === 'auto' ? computeModes(capability) : [flags.compute as Compute]
  say(`${name}, compute capability ${capability / 10}, ${formatBytes(totalBytes)}`)
  const cases = await caseFolders(flags.golden ?? [])
  for (const compute of modes) {
    const found = await checkOps(cpu, gpu, compute, positionals)
    ops.push(...found)
    for (const { command, label, error, allowed, passed, message } of found)
      if (!passed)
        say(`  WRONG ${command} (${label}): ${message ?? `error ${error.toExponential(1)}, allowed ${allowed.toExponential(0)}`}`)
    say(`commands in ${compute}: ${found.filter(({ passed }) => passed).length} of ${found.length} agree with the processor`)
    if (!opsAlone) {
      const result = await compareTraining(cpu, gpu, compute)
      training.push(result)
      say(
        `training in ${compute}: losses of ${result.steps} steps within ${(100 * result.error).toFixed(2)} % (${result.passed ? 'ok' : 'WRONG'}, allowed ${100 * result.allowed} %)`,
      )
    }
    for (const folder of cases) {
      const golden = await checkGolden(folder, gpu, compute)
      goldens.push(golden)
      say(
        `golden ${golden.case} in ${compute}: ${golden.failed.length === 0 ? `all ${golden.quantities} quantities agree` : `WRONG: ${golden.failed.slice(0, 6).join('; ')}`}`,
      )
    }
  }
  const bench = opsAlone || flags.no_bench ? undefined : await shortBench(gpu)
  if (bench !== undefined)
    say(
      `qwen2.5-0.5b, 8 × 2048 tokens: ${bench.tokensPerSecond.toFixed(0)} tokens/s, ${(bench.gflops / 1e3).toFixed(0)} TFLOP/s, ${(100 * bench.share).toFixed(0)} % of a product's ${(bench.gemmPeak / 1e3).toFixed(0)}`,
    )
  const failed =
    ops.filter(({ passed }) => !passed).length +
    training.filter(({ passed }) => !passed).length +
    goldens.filter(({ failed: bad }) => bad.length > 0).length
  if (flags.json)
    console.log(
      JSON.stringify(
        {
          gpu: name,
          capability,
          ops: ops.map((op) => ({ ...op, error: Number.isFinite(op.error) ? op.error : null })),
          training,
          goldens,
          bench,
          failed,
        },
        null,
        2,
      ),
    )
  else say(failed === 0 ? 'all is well' : `${failed} checks failed`)
  return failed === 0 ? 0 : 1
}

async function checkOps(cpu: DeviceChoice, gpu: DeviceChoice, compute: Compute, names: readonly string[]): Promise<OpResult[]> {
  const [host, device] = [new Runtime(cpu), new Runtime(gpu)]
  try {
    const ops = await compareOps({ runtime: host, activation: 'f32' }, { runtime: device, ...numbersOf(compute) }, names)
    const loads =
      compute === 'float32' && (names.length === 0 || names.includes('load')) ? await compareLoading(host, device) : []
    return [...ops, ...loads]
  } finally {
    host.dispose()
    device.dispose()
  }
}

/** Case folders among these, and those directly inside of them; folders of references without a model are none. */
async function caseFolders(folders: readonly string[]): Promise<string[]> {
  const found: string[] = []
  for (const folder of folders) {
    const inside = Golden.isCase(folder)
      ? [folder]
      : (await readdir(folder))
          .sort()
          .map((name) => join(folder, name))
          .filter((path) => Golden.isCase(path))
    if (inside.length === 0)
      throw new UnslothError('FILE_FORMAT', `${folder}: there is no golden case.`, {
        hint: 'A case holds golden.safetensors and the model it is about; see test/golden/README.md.',
      })
    found.push(...inside)
  }
  return found
}

async function checkGolden(folder: string, device: DeviceChoice, compute: Compute): Promise<GoldenResult> {
  try {
    const golden = await Golden.open(folder)
    const computation = new CaseComputation(golden, { device, compute })
    await computation.run()
    const results = await compare(golden, computation.quantities, new Set(), computation.target)
    const failed = results.filter(({ verdict }) => verdict === 'wrong' || verdict === 'missing')
    return {
      case: folder,
      compute,
      quantities: results.length,
      failed: failed.map(({ name, error, tolerance }) => `${name} ${error.toExponential(1)} > ${tolerance.toExponential(0)}`),
    }
  } catch (error) {
    return { case: folder, compute, quantities: 0, failed: [describeError(error)] }
  }
}

const shortBench = (device: DeviceChoice): Promise<StepBench> =>
  benchStep({
    shape: 'qwen2.5-0.5b',
    tokens: 2048,
    sequences: 8,
    instruction: false,
    steps: 12,
    device,
    compute: 'auto',
    checkpointing: 'auto',
    profile: false,
    training: { kind: 'lora', r: 16, alpha: 16, dropout: 0, targets: 'all-linear', rslora: false, modulesToSave: [] },
  })
