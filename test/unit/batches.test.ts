import assert from 'node:assert/strict'
import { packRows } from '../../engine/data/packRows.ts'
import { permutation, Xoshiro128 } from '../../engine/data/random.ts'
import {
  evaluationBatches,
  labelledTokens,
  packMicroSteps,
  SampleOrder,
  TrainingBatches,
  type MicroBatch,
  type StepSample,
} from '../../engine/train/batches.ts'

const random = new Xoshiro128(11)
const sampleOf = (key: number, length: number): StepSample => {
  const ids = Int32Array.from({ length }, () => 1 + random.below(1000))
  const trainedFrom = 1 + random.below(length - 1)
  return { key, ids, labels: ids.map((id, at) => (at < trainedFrom || (at > trainedFrom && at % 5 === 0) ? -100 : id)) }
}
const samples = Array.from({ length: 23 }, (_, key) => sampleOf(key + 100, 2 + random.below(60)))

/** Every (key, position, id, predicted token, weight) of micro-steps, whatever their order. */
function facts(batches: readonly MicroBatch[]): string[] {
  return batches
    .flatMap(({ ids, positions, tokenKeys, labelIndex, labels, weights }) => {
      const labelOf = new Map(Array.from(labelIndex, (row, index) => [row, `${labels[index]} ${weights[index]}`]))
      return Array.from(ids, (id, row) => {
        assert.equal(tokenKeys[2 * row + 1], positions[row])
        return `${tokenKeys[2 * row]} ${positions[row]} ${id} ${labelOf.get(row) ?? '-'}`
      })
    })
    .sort()
}

const sum = (values: Iterable<number>): number => [...values].reduce((total, value) => total + value, 0)

describe('micro-steps', () => {
  it('hold exactly the samples of the step, each whole, with its next tokens as labels', () => {
    const total = labelledTokens(samples)
    const weight = Math.fround(1 / total)
    const expected = samples
      .flatMap(({ key, ids, labels }) =>
        Array.from(ids, (id, at) => {
          const next = labels[at + 1] ?? -100
          return `${key} ${at} ${id} ${next === -100 ? '-' : `${next} ${weight}`}`
        }),
      )
      .sort()
    assert.deepEqual(facts(packMicroSteps(samples, [100])), expected)
  })

  it('do not depend on the capacities but for the split', () => {
    const expected = facts(packMicroSteps(samples, [10_000]))
    for (const capacities of [[61], [64, 128], [100, 500], [61, { tokens: 300, labelled: 90, sequences: 3 }]])
      assert.deepEqual(facts(packMicroSteps(samples, capacities)), expected)
  })

  it('have weights that add up to 1', () => {
    for (const capacity of [61, 200, 10_000])
      assert.ok(Math.abs(sum(packMicroSteps(samples, [capacity]).flatMap(({ weights }) => [...weights])) - 1) < 1e-6)
  })

  it('are laid out as the plans read them', () => {
    const [batch, ...more] = packMicroSteps(
      [
        { key: 7, ids: Int32Array.of(1, 5, 6, 2), labels: Int32Array.of(-100, -100, 6, 2) },
        { key: 9, ids: Int32Array.of(1, 8, 2), labels: Int32Array.of(1, 8, 2) },
      ],
      [16, 8, 32],
    )
    assert.equal(more.length, 0)
    assert.deepEqual(batch, {
      ids: Int32Array.of(1, 5, 6, 2, 1, 8, 2),
      positions: Int32Array.of(0, 1, 2, 3, 0, 1, 2),
      tokenKeys: Int32Array.of(7, 0, 7, 1, 7, 2, 7, 3, 9, 0, 9, 1, 9, 2),
      qStart: Int32Array.of(0, 4, 7),
      kvStart: Int32Array.of(0, 4),
      kvLength: Int32Array.of(4, 3),
      labelIndex: Int32Array.of(1, 2, 4, 5),
      labels: Int32Array.of(6, 2, 8, 2),
      weights: new Float32Array(4).fill(0.25),
      samples: Int32Array.of(0, 1),
      capacity: 1,
    })
  })

  it('are as few as first-fit decreasing finds, within every limit', () => {
    const of = (...lengths: number[]) => lengths.map((length, key) => sampleOf(key, length))
    assert.deepEqual(
      packMicroSteps(of(3, 7, 5, 5), [10]).map(({ kvLength }) => [...kvLength]),
      [
        [3, 7],
        [5, 5],
      ],
    )
    assert.equal(packMicroSteps(of(3, 3, 3, 3), [{ tokens: 100, sequences: 2 }]).length, 2)
    const limited = packMicroSteps(samples, [{ tokens: 120, labelled: 60, sequences: 4 }])
    for (const batch of limited) assert.ok(batch.ids.length <= 120 && batch.labels.length <= 60 && batch.kvLength.length <= 4)
    assert.deepEqual(
      packMicroSteps(of(3, 7), [4, 8]).map(({ capacity }) => capacity),
      [1, 0],
    )
  })

  it('refuse what no plan has room for, and a step without labels', () => {
    assert.throws(
      () => packMicroSteps(samples, [10]),
      /a sample of \d+ tokens is longer than the largest micro-step of 10 tokens/,
    )
    assert.throws(
      () => packMicroSteps([{ key: 0, ids: Int32Array.of(1, 2), labels: Int32Array.of(1, -100) }], [10]),
      /no labelled token/,
    )
  })
})

describe('order of samples', () => {
  const order = (count: number, perStep: number, shuffle = true, seed = 3407) =>
    new SampleOrder({ count, perStep, seed, shuffle })

  it('takes each sample once in an epoch and keeps the last, smaller step', () => {
    const steps = order(10, 4)
    assert.equal(steps.stepsPerEpoch, 3)
    for (const epoch of [0, 1]) {
      const taken = [0, 1, 2].map((step) => steps.step(3 * epoch + step))
      assert.deepEqual(
        taken.map(({ indices }) => indices.length),
        [4, 4, 2],
      )
      assert.deepEqual(
        taken.flatMap(({ indices }) => [...indices]).sort((a, b) => a - b),
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
      )
      assert.deepEqual(
        taken.map(({ epoch: at, epochAfter }) => [at, epochAfter]),
        [
          [epoch, epoch + 1 / 3],
          [epoch, epoch + 2 / 3],
          [epoch, epoch + 1],
        ],
      )
    }
  })

  it('is another in each epoch and for each seed, the same when asked again, and the file order without shuffle', () => {
    const epoch = (seed: number, number: number) => [...order(50, 50, true, seed).step(number).indices]
    assert.notDeepEqual(epoch(1, 0), epoch(1, 1))
    assert.notDeepEqual(epoch(1, 0), epoch(2, 0))
    assert.deepEqual(epoch(1, 5), epoch(1, 5))
    assert.deepEqual([...order(5, 2, false).step(4).indices], [2, 3])
  })

  it('is found from any step without the ones before', () => {
    const straight = order(17, 4)
    const all = Array.from({ length: 20 }, (_, step) => [...straight.step(step).indices])
    for (const step of [19, 3, 11, 0]) assert.deepEqual([...order(17, 4).step(step).indices], all[step])
  })

  it('comes from the documented generator', () => {
    const known = new Xoshiro128(3407, 2)
    assert.deepEqual(
      [1, 2, 3, 4].map(() => known.next()),
      [50345624, 4078567596, 1505020554, 1484890372],
    )
    assert.deepEqual([...permutation(10, 3407)], [0, 6, 4, 2, 9, 3, 1, 7, 8, 5])
    const counts = new Array<number>(3).fill(0)
    const generator = new Xoshiro128(42)
    for (let draw = 0; draw < 30_000; draw++) counts[generator.below(3)]!++
    for (const count of counts) assert.ok(Math.abs(count - 10_000) < 400, String(counts))
  })
})

describe('packing into rows', () => {
  const lengths = Array.from({ length: 300 }, () => 1 + random.below(400))

  it('puts every sample into one row, within its length, and fills rows well', () => {
    const rows = packRows(lengths, { rowTokens: 512, seed: 1, shuffle: true })
    assert.deepEqual(
      rows.flat().sort((a, b) => a - b),
      lengths.map((_, index) => index),
    )
    const filled = rows.map((row) => sum(row.map((index) => lengths[index]!)))
    for (const tokens of filled) assert.ok(tokens <= 512)
    assert.ok(sum(filled) / (512 * rows.length) > 0.95)
    assert.deepEqual(packRows(lengths, { rowTokens: 512, seed: 1, shuffle: true }), rows)
  })

  it('takes the row that fits best, and stays within its window', () => {
    assert.deepEqual(packRows([6, 5, 4, 3, 2], { rowTokens: 10, seed: 1, shuffle: false }), [
      [0, 2],
      [1, 3, 4],
    ])
    assert.deepEqual(packRows([6, 5, 4, 3], { rowTokens: 10, seed: 1, shuffle: false, window: 2 }), [[0], [1], [2, 3]])
    assert.deepEqual(packRows([12, 3], { rowTokens: 10, seed: 1, shuffle: false }), [[0], [1]])
  })

  it('counts rows as samples, and keeps samples apart', () => {
    const options = { batchSize: 2, gradientAccumulation: 2, seed: 5, shuffle: true }
    const packed = new TrainingBatches(samples, { ...options, packing: { rowTokens: 64 } })
    const plain = new TrainingBatches(samples, options)
    assert.ok(packed.count < plain.count)
    assert.equal(packed.order.stepsPerEpoch, Math.ceil(packed.count / 4))
    const epoch = (batches: TrainingBatches) =>
      Array.from({ length: batches.order.stepsPerEpoch }, (_, step) => batches.microSteps(step, [256])).flat()
    const keysAndPositions = (batches: readonly MicroBatch[]) =>
      facts(batches).map((fact) => fact.split(' ').slice(0, 3).join(' '))
    assert.deepEqual(keysAndPositions(epoch(packed)), keysAndPositions(epoch(plain)))
    for (const batches of [packed, plain])
      for (let step = 0; step < batches.order.stepsPerEpoch; step++)
        assert.ok(sum(batches.samplesOf(step).map(({ ids }) => ids.length)) <= batches.longestStep)
  })
})

describe('evaluation', () => {
  it('goes through the set as often as asked, with weights that add up to 1', () => {
    const many = Array.from({ length: 600 }, (_, key) => sampleOf(key, 2 + random.below(20)))
    const batches = evaluationBatches(many, [64])
    for (let round = 0; round < 2; round++) {
      const all = [...batches]
      assert.equal(sum(all.map(({ ids }) => ids.length)), sum(many.map(({ ids }) => ids.length)))
      assert.ok(Math.abs(sum(all.flatMap(({ weights }) => [...weights])) - 1) < 1e-6)
    }
  })
})
