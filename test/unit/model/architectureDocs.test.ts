import { strict as assert } from 'node:assert'
import { proofs } from '../../../engine/model/proofs.ts'
import { families } from '../../../engine/model/registry.ts'
import { activationBytes } from '../../../engine/verify/architectureDocs.ts'
import { toleranceOf } from '../../../engine/verify/tolerance.ts'

describe('docs/architectures.md', () => {
  it('has a proof within tolerance for every architecture', () => {
    for (const { architectures } of families)
      for (const architecture of architectures) {
        const mine = proofs.filter((proof) => proof.architecture === architecture)
        assert.ok(mine.length > 0, `${architecture} was never compared with a reference`)
        for (const proof of mine) {
          assert.ok(
            proof.logits <= toleranceOf('logits') &&
              proof.gradients <= toleranceOf('lora_grad') &&
              proof.training <= toleranceOf('curve_loss'),
            proof.case,
          )
          assert.ok(proof.greedy && proof.quantities > 40, proof.case)
        }
      }
  })
  it('shows activations that grow with tokens, not with their square', () => {
    const [one, two, four] = [8192, 16_384, 32_768].map(activationBytes) as [number, number, number]
    assert.ok(two / one < 2.01 && four / two < 2.01, [one, two, four].join())
  })
})
