import type { MemoryPart } from '#shared/protocol.ts'
import { bytesPerElement } from '../graph/dtype.ts'
import { scratchBytes } from '../graph/scratchBytes.ts'
import type { StepPlan } from '../model/stepGraph.ts'
import type { Place } from '../native.ts'
import type { GpuOverhead } from '../runtime/gpuOverhead.ts'
import type { PatchedModel } from '../runtime/patchedModel.ts'
import type { UnpackedWeights } from '../runtime/unpackedWeights.ts'
import { planMemory } from '../graph/plan.ts'
import { refreshCommands } from '../patch/shadow.ts'
import { planOptimizer, type OptimizerKind } from './optimizerState.ts'

/** Commands of one CUDA graph and of all, at most; mirrors kernels/cuda/cudaDevice.cc. */
const mostRecorded = 16_384
const mostRecordedInAll = 65_536

export interface MemoryOptions {
  /** Default AdamW with moments of 32 bits. */
  readonly optimizer?: OptimizerKind
  /** Of the processor's kernels. */
  readonly threads: number
  /** What a process holds on its GPU beside what it asks for; default none. */
  readonly gpuOverhead?: GpuOverhead | undefined
  /** Row counts of micro-steps that recur: each is recorded as a CUDA graph. Default 1. */
  readonly graphs?: number
}

/** Memory by what it is for, and its sums on the device and, beside a GPU, in memory of the system. */
export interface PlannedMemory {
  readonly parts: readonly MemoryPart[]
  readonly totalBytes: number
  readonly hostBytes: number
}

/** What takes memory in a run. */
export interface MemoryUsers {
  readonly training: StepPlan
  readonly scoring: StepPlan | undefined
  readonly unpacked: UnpackedWeights
  /** Where the moments of the optimizer lie. */
  readonly moments: Place
}

/** The memory of a run. */
export function plannedMemory(
  patched: PatchedModel,
  { training, scoring, moments, unpacked }: MemoryUsers,
  options: MemoryOptions,
): PlannedMemory {
  const { target, layout, arena } = patched
  const state = layout.elements * 4
  const optimizer = planOptimizer(layout, { kind: options.optimizer ?? 'adamw', beta1: 0, beta2: 0, eps: 0, weightDecay: 0 })
  const refresh = planMemory(refreshCommands(layout, arena.weights, target))
  const momentBytes = optimizer.moment1 + optimizer.moment2
  const plans = [training, ...(scoring === undefined ? [] : [scoring])]
  const most = (of: (step: StepPlan) => number) => Math.max(...plans.map(of))
  const recorded = plans.map(({ plan }) => plan.commands.length).filter((count) => count <= mostRecorded)
  const commands = Math.min(
    mostRecordedInAll,
    optimizer.update.length + refresh.commands.length + (options.graphs ?? 1) * recorded.reduce((sum, count) => sum + count, 0),
  )
  const onHost = (name: string, bytes: number) => ({ name, bytes, place: 'host' as const })
  const parts: MemoryPart[] = [
    { name: 'frozen weights', bytes: arena.bytes },
    { name: 'unpacked weights', bytes: unpacked.bytes },
    onHost(hostWeightsName(patched), arena.hostBytes),
    { name: patched.training.kind === 'full' ? 'trained weights' : 'adapters', bytes: state },
    { name: 'rounded copies', bytes: target.parameters === 'f32' ? 0 : layout.elements * bytesPerElement(target.parameters) },
    { name: 'row lengths', bytes: layout.doraBytes },
    { name: 'gradients', bytes: state },
    moments === 'host' ? onHost('optimizer', momentBytes) : { name: 'optimizer', bytes: momentBytes },
    {
      name: 'activations',
      bytes: Math.max(
        refresh.activationBytes,
        most(({ plan }) => plan.activationBytes),
      ),
    },
    onHost(
      'offloaded activations',
      most(({ plan }) => plan.offloadedBytes),
    ),
    { name: 'batch', bytes: most(({ ioBytes }) => ioBytes) },
    { name: 'kernel scratch', bytes: scratchBytes(target, training.plan.commands, options.threads) },
    { name: 'GPU context and kernels', bytes: options.gpuOverhead?.contextBytes ?? 0 },
    { name: 'CUDA graphs', bytes: commands * (options.gpuOverhead?.graphNodeBytes ?? 0) },
  ].filter(({ bytes }) => bytes > 0)
  const bytesIn = (where: MemoryPart['place']) =>
    parts.reduce((sum, { bytes, place }) => (place === where ? sum + bytes : sum), 0)
  return { parts, totalBytes: bytesIn(undefined), hostBytes: bytesIn('host') }
}

function hostWeightsName({ arena }: PatchedModel): string {
  const ids = [...arena.weights].filter(([, { value }]) => value.storage.arena === 'hostWeights').map(([id]) => id)
  return ids.join(' and ')
}
