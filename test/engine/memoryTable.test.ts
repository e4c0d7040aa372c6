import assert from 'node:assert/strict'
import { memoryCases } from '../../engine/bench/memory.ts'
import { runProgram } from './support.ts'

interface Table {
  readonly device: string
  readonly results: readonly {
    readonly name: string
    readonly plannedBytes: number
    readonly measuredBytes: number
    readonly difference: number
    readonly plan: string
  }[]
  readonly within: number
}

describe('unsloth bench --memory', function () {
  this.timeout(60_000)

  it('has twenty different runs for each kind of device, over sizes, methods and optimizers', () => {
    for (const cases of Object.values(memoryCases)) {
      assert.equal(new Set(cases.map(({ name }) => name)).size, 20)
      for (const key of ['shape', 'method', 'optim', 'checkpointing', 'tokens'] as const)
        assert.ok(new Set(cases.map((one) => one[key])).size >= 3 || key === 'checkpointing', key)
    }
  })

  it('plans, runs and measures each in a process of its own', async () => {
    const names = ['stories15m full 2x256 adamw_torch none', 'qwen2.5-0.5b/1 lora-r8 1x32 adamw_torch none']
    const { code, stdout, stderr } = await runProgram([
      'bench',
      '--memory',
      '--json',
      '--device',
      'cpu',
      '--threads',
      '1',
      ...names,
    ])
    assert.equal(code, 0, stderr)
    const { device, results } = JSON.parse(stdout) as Table
    assert.deepEqual([device, results.map(({ name }) => name)], ['cpu', names])
    for (const { name, plannedBytes, measuredBytes, difference, plan } of results) {
      assert.ok(plannedBytes > 3e8 && Math.abs(difference - (measuredBytes / plannedBytes - 1)) < 1e-9, name)
      // Plans of so little memory show the process's own few megabytes, too.
      assert.ok(
        Math.abs(measuredBytes - plannedBytes) < 40 * 2 ** 20,
        `${name}: planned ${plannedBytes}, measured ${measuredBytes}`,
      )
      assert.match(plan, /layers recomputed/)
    }
  })

  it('says which runs there are when a word is in none', async () => {
    const { code, stderr } = await runProgram(['bench', '--memory', '--device', 'cpu', 'gpt-9'])
    assert.notEqual(code, 0)
    assert.match(stderr, /There is no run gpt-9 to measure[\s\S]*stories15m full 2x256/)
  })
})
