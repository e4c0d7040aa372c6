import { UnslothError } from '#shared/errors.ts'
import { formatBytes } from '#shared/units.ts'
import { benchShapes, shapeModel } from '../../bench/shapes.ts'
import { benchStep, type StepBench } from '../../bench/step.ts'
import { measureOps, type OpMeasurement } from '../../bench/ops.ts'
import { keepSpeed } from '../../bench/speedFigures.ts'
import { memoryCases, measureMemoryTable } from '../../bench/memory.ts'
import { deviceName } from '../../runtime/chooseDevice.ts'
import type { DeviceChoice } from '../../runtime/runtime.ts'
import type { Training } from '../../runtime/patchedModel.ts'
import { optimizerKinds } from '../../train/optimizerState.ts'
import type { Checkpointing } from '../../train/trainingPlan.ts'
import type { CommandArgs } from '../commandArgs.ts'
import { computeSettings } from '../settings.ts'

/** Measures operations at the shapes of a model, and whole training steps. */
export async function benchCommand({ positionals, flags }: CommandArgs<'bench'>): Promise<number> {
  const settings = computeSettings(flags)
  if (flags.memory) return benchMemory(positionals, settings.device, flags.json)
  const shapes = flags.shape ?? ['stories15m']
  for (const shape of shapes) if (benchShapes[shape] === undefined) shapeModel(shape, 'BF16')
  const training: Training =
    flags.rank === 0
      ? { kind: 'full' }
      : { kind: 'lora', r: flags.rank, alpha: flags.rank, dropout: 0, targets: 'all-linear', rslora: false, modulesToSave: [] }
  const ops: OpMeasurement[] = []
  const steps: StepBench[] = []
  for (const shape of shapes) {
    if (flags.ops || positionals.length > 0)
      ops.push(...(await measureOps(shape, { tokens: flags.tokens, ...settings, names: positionals })))
    else
      steps.push(
        await benchStep({
          shape,
          tokens: flags.tokens,
          sequences: flags.batch,
          instruction: flags.data === 'instruction',
          steps: flags.steps,
          ...settings,
          checkpointing: flags.recompute as Checkpointing,
          training,
          bits: flags.load_in_4bit ? 4 : flags.load_in_8bit ? 8 : undefined,
          optimizer: optimizerKinds[flags.optim]!,
          profile: !flags.no_profile,
          ...(flags.layers === undefined ? {} : { layers: flags.layers }),
        }),
      )
  }
  if (positionals.length > 0 && ops.length === 0)
    throw new UnslothError('USAGE', `There is no operation ${positionals.join(', ')} to measure.`, {
      hint: '`unsloth bench --ops` shows all.',
    })
  // The editor estimates by them how long a recipe takes; a shape cut short says nothing about that.
  if (flags.layers === undefined) for (const step of steps) keepSpeed(step)
  if (flags.json) console.log(JSON.stringify({ ops, steps }, null, 2))
  else print(ops, steps)
  return 0
}

/** A table of planned and measured memory, or JSON. Fails when a run failed. */
async function benchMemory(words: readonly string[], device: DeviceChoice, json: boolean): Promise<number> {
  const cases = memoryCases[device.kind].filter(({ name }) => words.length === 0 || words.some((word) => name.includes(word)))
  if (cases.length === 0)
    throw new UnslothError('USAGE', `There is no run ${words.join(', ')} to measure.`, {
      hint: `Names: ${memoryCases[device.kind].map(({ name }) => name).join('; ')}.`,
    })
  const results = await measureMemoryTable(cases, device, (result) => {
    if (json) return
    const { name } = result
    if ('error' in result) console.log(`${name.padEnd(58)} ${result.error}`)
    else
      console.log(
        `${name.padEnd(58)} ${formatBytes(result.plannedBytes).padStart(9)} planned ${formatBytes(result.measuredBytes).padStart(9)} measured ${(100 * result.difference).toFixed(1).padStart(6)} %`,
      )
  })
  const figures = results.filter((result) => 'difference' in result)
  const within = figures.filter(({ difference }) => Math.abs(difference) <= 0.03).length
  if (json) console.log(JSON.stringify({ device: deviceName(device), results, within }, null, 2))
  else console.log(`within 3 %: ${within} of ${results.length}`)
  return figures.length === results.length ? 0 : 1
}

function print(ops: readonly OpMeasurement[], steps: readonly StepBench[]): void {
  for (const { shape, name, seconds, gflops, gigabytesPerSecond } of ops)
    console.log(
      `${shape.padEnd(14)} ${name.padEnd(34)} ${(seconds * 1e3).toFixed(2).padStart(9)} ms ${gflops.toFixed(0).padStart(7)} GFLOP/s ${gigabytesPerSecond.toFixed(1).padStart(7)} GB/s`,
    )
  for (const step of steps) {
    const data = step.instruction ? `${step.sequences} rows of instruction lengths` : `${step.sequences} × ${step.tokens} tokens`
    console.log(`${step.shape}, ${data}, ${step.device}, ${step.numbers}: ${step.plan}`)
    console.log(`  loss ${step.losses.map((loss) => loss.toFixed(3)).join(' ')}`)
    console.log(
      `  ${step.seconds.toFixed(3)} s a step, ${step.tokensPerSecond.toFixed(0)} tokens/s, ${step.gflops.toFixed(0)} GFLOP/s, ${(100 * step.share).toFixed(0)} % of the ${step.gemmPeak.toFixed(0)} GFLOP/s of a matrix product, ${formatBytes(step.plannedBytes)} planned${step.measuredBytes === undefined ? '' : `, ${formatBytes(step.measuredBytes)} measured`}`,
    )
    const total = step.commands.reduce((sum, { seconds }) => sum + seconds, 0)
    for (const { name, seconds, count } of step.commands.slice(0, 12))
      console.log(
        `  ${(seconds * 1e3).toFixed(1).padStart(9)} ms ${((100 * seconds) / total).toFixed(1).padStart(5)} %  ${count} × ${name}`,
      )
  }
}
