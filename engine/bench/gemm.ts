import { dtypeCode, type DType } from '../graph/dtype.ts'
import { whole, type Arena, type Tensor } from '../graph/graph.ts'
import { gemm } from '../graph/ops/linear.ts'
import { planMemory } from '../graph/plan.ts'
import type { Target } from '../graph/target.ts'
import { Runtime, type DeviceChoice } from '../runtime/runtime.ts'

export interface GemmBenchOptions {
  readonly m: number
  readonly n: number
  readonly k: number
  readonly mode: 0 | 1 | 2
  /** Type of the second operand; default: the target's. */
  readonly weight?: DType
  readonly target: Target
  readonly device: DeviceChoice
}

/** GFLOP/s of one matrix product through the addon: the fastest of repetitions that take about a second together. */
export async function measureGemm(options: GemmBenchOptions): Promise<{ gflops: number; seconds: number }> {
  const { m, n, k, mode, target } = options
  const type = target.activation
  const weight = options.weight ?? type
  const shapes = { c: [m, n], a: mode === 2 ? [k, m] : [m, k], b: mode === 0 ? [n, k] : [k, n] } as const
  const matrix = (name: 'a' | 'b' | 'c', arena: Arena, dtype: DType): Tensor =>
    whole({
      name,
      arena,
      offset: 0,
      dtype,
      rows: shapes[name][0],
      cols: shapes[name][1],
      rule: 'fixed',
      keep: 'residual',
      layer: -1,
    })
  const [c, a, b] = [matrix('c', 'grads', type), matrix('a', 'params', type), matrix('b', 'weights', weight)]
  const runtime = new Runtime(options.device)
  try {
    runtime.reserve('grads', m * n * 4)
    runtime.reserve('params', m * k * 4)
    runtime.reserve('weights', n * k * 4)
    await runtime.fillUniform('params', 0, m * k, dtypeCode(type), [-1, 1], 1, 1)
    await runtime.fillUniform('weights', 0, n * k, dtypeCode(weight), [-1, 1], 1, 2)
    const compiled = runtime.compile(planMemory([gemm(mode, c, a, b, { precision: target.precision })]))
    let best = Infinity
    for (let spent = 0, runs = 0; runs < 3 || (spent < 1 && runs < 50); ++runs) {
      const [seconds] = await compiled.profile()
      best = Math.min(best, seconds!)
      spent += seconds!
    }
    return { gflops: (2 * m * n * k) / best / 1e9, seconds: best }
  } finally {
    runtime.dispose()
  }
}
