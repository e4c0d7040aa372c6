import { strict as assert } from 'node:assert'
import type { CommandName } from '../../../engine/graph/commands.ts'
import { slice, whole, type Arena, type Command, type Tensor } from '../../../engine/graph/graph.ts'
import { planMemory } from '../../../engine/graph/plan.ts'
import { Runtime } from '../../../engine/runtime/runtime.ts'
import { random } from '../../reference/matrix.ts'

const [rows, cols] = [5, 300]
const bytes = rows * cols * 4

const tensor = (name: string, arena: Arena, offset: number): Tensor =>
  whole({ name, arena, offset, dtype: 'f32', rows, cols, rule: 'fixed', keep: 'residual', layer: -1 })
const x = tensor('x', 'weights', 0)
const y = tensor('y', 'weights', bytes)
const host = tensor('x on the host', 'offloaded', -1)

const command = (name: CommandName, ...tensors: Tensor[]): Command => ({ name, tensors, ints: [], floats: [] })

/** Runs commands on random numbers in x; returns them, and what y holds then. */
async function run(...commands: Command[]): Promise<{ numbers: Float32Array; back: Float32Array }> {
  const runtime = new Runtime({ kind: 'cpu', threads: 2 })
  try {
    const numbers = Float32Array.from(random(rows, cols, 1).data)
    runtime.reserve('weights', 2 * bytes)
    runtime.write('weights', 0, numbers)
    await runtime.compile(planMemory(commands)).run()
    return { numbers, back: runtime.readFloats('weights', bytes, rows * cols) }
  } finally {
    runtime.dispose()
  }
}

const clearX: Command = { name: 'fill', tensors: [x], ints: [], floats: [0] }

describe('offload', () => {
  it('takes a matrix away, so that its memory is free, and `prefetch` brings it back', async () => {
    const { numbers, back } = await run(
      command('offload', host, x),
      command('awaitCopy', x),
      clearX,
      command('prefetch', y, host),
      command('awaitCopy', y),
    )
    assert.deepEqual(back, numbers)
  })
  it('refuses a part of a matrix, and another shape', async () => {
    await assert.rejects(run(command('offload', slice(host, 0, 8), slice(x, 0, 8))), /offload: both must be whole matrices/)
    await assert.rejects(run(command('offload', slice(host, 0, 8), x)), /offload: the target is f32\[5,8\], expected \[5,300\]/)
  })
})

describe('prefetch', () => {
  it('refuses a part of a matrix', async () => {
    await assert.rejects(
      run(command('offload', host, x), command('prefetch', slice(y, 0, 8), slice(host, 0, 8))),
      /prefetch: both must be whole matrices/,
    )
  })
})

describe('awaitCopy', () => {
  it('changes nothing where no copy is under way', async () => {
    const { back } = await run(command('awaitCopy', x), command('awaitCopy', y))
    assert.deepEqual(back, new Float32Array(rows * cols))
  })
})
