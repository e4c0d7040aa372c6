import { UnslothError } from '#shared/errors.ts'
import { formatBytes } from '#shared/units.ts'
import { benchShapes, shapeModel } from '../../bench/shapes.ts'
import { benchStep, type StepBench } from '../../bench/step.ts'
import { measureOps, type OpMeasurement } from '../../bench/ops.ts'
import { keepSpeed } from '../../bench/speedFigures.ts'
import type { Training } from '../../runtime/patchedModel.ts'
import { optimizerKinds } from '../../train/optimizerState.ts'
import type { Checkpointing } from '../../train/trainingPlan.ts'
import type { CommandArgs } from '../commandArgs.ts'
import { computeSettings } from '../settings.ts'

/** Measures operations at the shapes of a model, and whole training steps. */
export async function benchCommand({ positionals, flags }: CommandArgs<'bench'>): Promise<number> {
  const settings = computeSettings(flags)
  const shapes = flags.shape ?? ['stories15m']
  for (const shape of shapes) if (benchShapes[shape] === undefined) shapeModel(shape, 'BF16')
  const training: Training = flags.rank === 0 ? { kind: 'full' } : { kind: 'lora', r: flags.rank, alpha: flags.rank, dropout: 0, targets: 'all-linear', rslora: false, modulesToSave: [] }
  const ops: OpMeasurement[] = []
  const steps: StepBench[] = []
  for (const shape of shapes) {
    if (flags.ops || positionals.length > 0) ops.push(...(await measureOps(shape, { tokens: flags.tokens, ...settings, names: positionals })))
    else
      steps.push(await benchStep({
        shape, tokens: flags.tokens, sequences: flags.batch, instruction: flags.data === 'instruction', steps: flags.steps, ...settings,
        checkpointing: flags.recompute as Checkpointing, training, bits: flags.load_in_4bit ? 4 : flags.load_in_8bit ? 8 : undefined, optimizer: optimizerKinds[flags.optim]!, profile: !flags.no_profile, ...(flags.layers === undefined ? {} : { layers: flags.layers }),
      }))
  }
  if (positionals.length > 0 && ops.length === 0) throw new UnslothError('USAGE', `There is no operation ${positionals.join(', ')} to measure.`, { hint: '`unsloth bench --ops` shows all.' })
  // The editor estimates by them how long a recipe takes; a shape cut short says nothing about that.
  if (flags.layers === undefined) for (const step of steps) keepSpeed(step)
  if (flags.json) console.log(JSON.stringify({ ops, steps }, null, 2))
  else print(ops, steps)
  return 0
}

function print(ops: readonly OpMeasurement[], steps: readonly StepBench[]): void {
  for (const { shape, name, seconds, gflops, gigabytesPerSecond } of ops)
    console.log(`${shape.padEnd(14)} ${name.padEnd(34)} ${(seconds * 1e3).toFixed(2).padStart(9)} ms ${gflops.toFixed(0).padStart(7)} GFLOP/s ${gigabytesPerSecond.toFixed(1).padStart(7)} GB/s`)
  for (const step of steps) {
    const data = step.instruction ? `${step.sequences} rows of instruction lengths` : `${step.sequences} × ${step.tokens} tokens`
    console.log(`${step.shape}, ${data}, ${step.device}, ${step.numbers}: ${step.plan}`)
    console.log(`  loss ${step.losses.map((loss) => loss.toFixed(3)).join(' ')}`)
    console.log(`  ${step.seconds.toFixed(3)} s a step, ${step.tokensPerSecond.toFixed(0)} tokens/s, ${step.gflops.toFixed(0)} GFLOP/s, ${(100 * step.share).toFixed(0)} % of the ${step.gemmPeak.toFixed(0)} GFLOP/s of a matrix product, ${formatBytes(step.plannedBytes)} planned${step.measuredBytes === undefined ? '' : `, ${formatBytes(step.measuredBytes)} measured`}`)
    const total = step.commands.reduce((sum, { seconds }) => sum + seconds, 0)
    for (const { name, seconds, count } of step.commands.slice(0, 12)) console.log(`  ${(seconds * 1e3).toFixed(1).padStart(9)} ms ${((100 * seconds) / total).toFixed(1).padStart(5)} %  ${count} × ${name}`)
  }
}
