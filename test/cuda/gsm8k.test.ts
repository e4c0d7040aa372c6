import { computeModes } from '../../engine/gpucheck/computeModes.ts'
import { usableGpus } from '../../engine/runtime/chooseDevice.ts'
import { assertEachClose, trainOnGsm8k } from '../engine/gsm8k.ts'
import { ownRuntimeFolder, temporaryFolder } from '../engine/support.ts'

/** In 16 bits the losses of a whole training drift apart: bf16 has 8 bits, fp16 and the products of TF32 11. */
const allowed = { float32: 5e-3, tfloat32: 5e-3, bfloat16: 2e-2, float16: 5e-3 } as const

describe('real text from its rows, on a GPU', () => {
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)

  for (const compute of computeModes(usableGpus().gpus[0]?.capability ?? 0))
    it(`stories15m on GSM8K in ${compute}: loss of torch and PEFT at every step`, async () => {
      const run = await trainOnGsm8k(`${folder}/${compute}`, { device: 'cuda', compute })
      if (run === undefined) return
      const { reference, steps, evaluations } = run
      assertEachClose(
        steps.map(({ loss }) => loss as number),
        await reference.floats('loss'),
        allowed[compute],
        'loss',
      )
      const after = evaluations.at(-1)!.eval_loss as number
      assertEachClose([after], await reference.floats('eval_loss_after'), allowed[compute], 'evaluation loss')
    })
})
