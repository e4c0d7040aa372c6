import { strict as assert } from 'node:assert'
import { compareOps } from '../../engine/gpucheck/compareOps.ts'
import { compareTraining } from '../../engine/gpucheck/compareTraining.ts'
import { computeModes, numbersOf } from '../../engine/gpucheck/computeModes.ts'
import { chooseDevice, usableGpus } from '../../engine/runtime/chooseDevice.ts'
import { Runtime } from '../../engine/runtime/runtime.ts'

/** What `unsloth gpu-check` compares; the golden cases are `unsloth verify --device cuda`. */
for (const compute of computeModes(usableGpus().gpus[0]?.capability ?? 0)) {
  describe(`the GPU in ${compute}`, () => {
    it('computes every command as the processor does', async () => {
      const [cpu, gpu] = [new Runtime(chooseDevice('cpu')), new Runtime(chooseDevice('cuda'))]
      try {
        const results = await compareOps({ runtime: cpu, activation: 'f32' }, { runtime: gpu, ...numbersOf(compute) })
        assert.ok(results.length > (compute === 'tfloat32' ? 20 : 100))
        assert.deepEqual(
          results.filter(({ passed }) => !passed),
          [],
        )
      } finally {
        cpu.dispose()
        gpu.dispose()
      }
    })

    it('trains as the processor does', async () => {
      const result = await compareTraining(chooseDevice('cpu'), chooseDevice('cuda'), compute)
      assert.ok(result.passed, `losses differ by ${100 * result.error} %, at most ${100 * result.allowed} %`)
    })
  })
}
