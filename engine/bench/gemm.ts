import { dtypeCode, type DType } from '../graph/dtype.ts'
import { whole, type Arena, type Tensor } from '../graph/graph.ts'
import { gemm, type PrecisionCode } from '../graph/ops/linear.ts'
import { planMemory } from '../graph/plan.ts'
import { Runtime } from '../runtime/runtime.ts'

export interface GemmBenchOptions {
  readonly m: number
  readonly n: number
  readonly k: number
  readonly mode: 0 | 1 | 2
  /** Type of the second operand. */
  readonly weight: DType
  readonly precision: PrecisionCode
  readonly threads: number
}

/** GFLOP/s of one matrix product through the addon: the fastest of repetitions that take about a second together. */
export async function measureGemm(options: GemmBenchOptions): Promise<{ gflops: number; seconds: number }> {
  const { m, n, k, mode } = options
  const shapes = { c: [m, n], a: mode === 2 ? [k, m] : [m, k], b: mode === 0 ? [n, k] : [k, n] } as const
  const matrix = (name: 'a' | 'b' | 'c', arena: Arena, dtype: DType): Tensor =>
    whole({ name, arena, offset: 0, dtype, rows: shapes[name][0], cols: shapes[name][1], rule: 'fixed', keep: 'residual', layer: -1 })
  const [c, a, b] = [matrix('c', 'grads', 'f32'), matrix('a', 'params', 'f32'), matrix('b', 'weights', options.weight)]
  const runtime = new Runtime('cpu', options.threads)
  try {
    runtime.reserve('grads', m * n * 4)
    runtime.reserve('params', m * k * 4)
    runtime.reserve('weights', n * k * 4)
    await runtime.fillUniform('params', 0, m * k, dtypeCode('f32'), [-1, 1], 1, 1)
    await runtime.fillUniform('weights', 0, n * k, dtypeCode(options.weight), [-1, 1], 1, 2)
    const compiled = runtime.compile(planMemory([gemm(mode, c, a, b, { precision: options.precision })]))
    let best = Infinity
    for (let spent = 0, runs = 0; runs < 3 || (spent < 1 && runs < 50); ++runs) {
      const [seconds] = await compiled.profile({ tokens: 0, labelled: 0, sequences: 0 })
      best = Math.min(best, seconds!)
      spent += seconds!
    }
    return { gflops: (2 * m * n * k) / best / 1e9, seconds: best }
  } finally {
    runtime.dispose()
  }
}
