import { strict as assert } from 'node:assert'
import { createHash } from 'node:crypto'
import { dynamicMap, fp4Code, groupShiftOf, headerBytes, nf4Code, quant4Layout } from '../../../engine/graph/quant4.ts'
import { quantStateJson } from '../../../engine/io/bitsandbytes.ts'

const digest = (values: Float32Array): string =>
  createHash('sha256').update(new Uint8Array(values.buffer)).digest('hex').slice(0, 16)

describe('quantisation of bitsandbytes', () => {
  it('has the dynamic maps of the library, to the last bit', () => {
    assert.equal(digest(dynamicMap(true)), 'e732639a65f497b4')
    assert.equal(digest(dynamicMap(false)), '305f002cc11278fb')
  })

  it('has codes that reach from −1 to 1', () => {
    assert.deepEqual([nf4Code[0], nf4Code[7], nf4Code[15]], [-1, 0, 1])
    assert.deepEqual([fp4Code[3], fp4Code[11]], [1, -1])
  })

  it('writes its state as Python does', () => {
    const text = (tensor: Parameters<typeof quantStateJson>[0]) => Buffer.from(quantStateJson(tensor)).toString()
    assert.equal(
      text({ type: 'nf4', dtype: 'bf16', shape: [128, 256] }),
      '{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [128, 256]}',
    )
    assert.equal(
      text({ type: 'fp4', dtype: 'f16', shape: [8, 64], nestedOffset: 0.09694147109985352 }),
      '{"quant_type": "fp4", "blocksize": 64, "dtype": "float16", "shape": [8, 64], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.09694147109985352}',
    )
  })

  it('shares a scale among as many blocks as every part of a fused weight allows', () => {
    assert.equal(groupShiftOf([0]), 8)
    assert.equal(groupShiftOf([0, 256, 384]), 7)
    assert.equal(groupShiftOf([0, 3]), 0)
  })

  it('lays the parts of a matrix out one after another', () => {
    assert.deepEqual(quant4Layout('q4', 128), { codes: headerBytes, absmax: 1536, nested: 1792, bytes: 1792 })
    assert.deepEqual(quant4Layout('q4n', 64 * 512), { codes: headerBytes, absmax: 17_664, nested: 18_176, bytes: 18_432 })
  })
})
