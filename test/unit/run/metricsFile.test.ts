import assert from 'node:assert/strict'
import fs from 'node:fs'
import { join } from 'node:path'
import { encodeMetric } from '#shared/metrics.ts'
import { AppendFile } from '../../../engine/run/appendFile.ts'
import { cutMetricsAfter, readMetricsFile } from '../../../engine/run/metricsFile.ts'
import { MetricsParser } from '../../../engine/run/metricsParser.ts'
import { stepRecord, temporaryFolder } from './support.ts'

const parse = (text: string) => {
  const parser = new MetricsParser()
  parser.push(Buffer.from(text))
  return parser.batch()
}

describe('metrics.jsonl', () => {
  const folder = temporaryFolder()
  const fresh = (name: string): string => join(folder, `${name}.jsonl`)

  it('reads numbers exactly as JSON.parse does', () => {
    const numbers = [
      '0',
      '-0',
      '1',
      '-17',
      '0.1',
      '2e-4',
      '1E5',
      '1e+3',
      '1.5e-7',
      '123456789.123456',
      '1e22',
      '1e23',
      '5e-324',
      '1.7976931348623157e308',
      '9007199254740991',
      '9007199254740993',
      '0.30000000000000004',
      '1732.0500000000002',
      '-2.5e-10',
      '123456789012345680000',
      '1e-30',
    ]
    for (let i = 0; i < 3000; i++) numbers.push(String((Math.random() - 0.5) * 10 ** Math.floor(Math.random() * 60 - 30)))
    for (let i = 0; i < 3000; i++) numbers.push(String(Number((Math.random() * 10 ** ((i % 20) - 10)).toPrecision(9))))
    const text = numbers.map((number, i) => `{"type":"step","step":${i},"loss":${number},"time":${1e12 + i}}\n`).join('')
    const { steps, invalid } = parse(text)
    assert.equal(invalid, 0)
    assert.deepEqual(
      [...steps.columns.loss!],
      numbers.map((number) => JSON.parse(number) as number),
    )
    assert.deepEqual(
      [...steps.columns.step],
      numbers.map((_, i) => i),
    )
  })

  it('refuses what JSON refuses, and goes on', () => {
    const good = '{"type":"step","step":1,"loss":2}\n'
    for (const bad of ['1.', '.5', '-', '1e', '+1', '1.2.3', '0x1', 'NaN', '1 2', '']) {
      const { steps, invalid } = parse(`${good}{"type":"step","step":1,"loss":${bad}}\n${good}`)
      assert.deepEqual([steps.length, invalid], [2, 1], bad)
    }
    assert.equal(parse(`${good}\u0000\u0000\u0000\n\n${good}`).steps.length, 2)
  })

  it('makes columns of new and missing keys', () => {
    const { steps, evals, events } = parse(
      [
        '{"type":"step","step":1,"loss":2}',
        '{"type":"step","step":2,"loss":1,"reward":5}',
        '{"type":"eval","step":2,"eval_loss":3}',
        '{"type":"event","event":"checkpoint","step":2,"time":9,"path":"checkpoints/step-000002"}',
        '{"type":"step","step":3,"loss":"NaN"}',
        '',
      ].join('\n'),
    )
    assert.deepEqual(steps.columns, {
      step: Float64Array.of(1, 2, 3),
      loss: Float64Array.of(2, 1, NaN),
      reward: Float64Array.of(NaN, 5, NaN),
    })
    assert.deepEqual(evals.columns, { step: Float64Array.of(2), eval_loss: Float64Array.of(3) })
    assert.equal(events[0]?.path, 'checkpoints/step-000002')
  })

  it('reads on from where it was, in bounded portions, without the line being written', async () => {
    const path = fresh('grow')
    const lines = Array.from({ length: 1000 }, (_, i) => `${encodeMetric(stepRecord(i + 1))}\n`)
    fs.writeFileSync(path, lines.slice(0, 600).join('') + lines[600]!.slice(0, 30))
    const seen: number[] = []
    let cursor
    let portions = 0
    for (let more = true; more;) {
      const read = await readMetricsFile(path, cursor, 5000)
      assert.equal(read.reset, false)
      seen.push(...read.steps.columns.step)
      ;({ cursor, more } = read)
      portions++
    }
    assert.ok(portions > 5)
    assert.deepEqual(
      seen,
      lines.slice(0, 600).map((_, i) => i + 1),
    )
    fs.appendFileSync(path, lines[600]!.slice(30) + lines.slice(601).join(''))
    const rest = await readMetricsFile(path, cursor)
    assert.equal(rest.steps.length, 400)
    assert.equal(rest.steps.columns.step[0], 601)
    assert.equal((await readMetricsFile(path, rest.cursor)).steps.length, 0)
  })

  it('reads a line longer than a portion', async () => {
    const path = fresh('long')
    fs.writeFileSync(path, `${JSON.stringify({ type: 'event', event: 'sample', step: 1, time: 1, message: 'x'.repeat(5000) })}\n`)
    const { events, more } = await readMetricsFile(path, undefined, 100)
    assert.equal(events[0]?.message?.length, 5000)
    assert.equal(more, false)
  })

  it('notices that the file was cut back and has grown past the old place', async () => {
    const path = fresh('cut')
    const file = new AppendFile(path)
    for (let i = 1; i <= 50; i++) file.append(`${encodeMetric(stepRecord(i))}\n`)
    const first = await readMetricsFile(path)
    cutMetricsAfter(file, 20)
    for (let i = 21; i <= 90; i++) file.append(`${encodeMetric({ ...stepRecord(i), time: 1_800_000_000_000 + i })}\n`)
    file.close()
    assert.ok(fs.statSync(path).size > first.cursor.offset)
    const again = await readMetricsFile(path, first.cursor)
    assert.equal(again.reset, true)
    assert.deepEqual(
      [...again.steps.columns.step],
      Array.from({ length: 90 }, (_, i) => i + 1),
    )
    fs.rmSync(path)
    assert.equal((await readMetricsFile(path, again.cursor)).reset, true)
  })

  it('cuts exactly after a step, whatever follows', () => {
    const path = fresh('exact')
    const keep = [
      encodeMetric(stepRecord(1)),
      encodeMetric({ type: 'eval', step: 2, epoch: 0, eval_loss: 1, eval_perplexity: 3, time: 0 }),
      encodeMetric({ type: 'event', event: 'checkpoint', step: 2, time: 0 }),
    ]
    fs.writeFileSync(
      path,
      `${[...keep, encodeMetric({ type: 'event', event: 'warning', step: 3, time: 0 }), encodeMetric(stepRecord(3))].join('\n')}\n{"torn`,
    )
    const file = new AppendFile(path)
    cutMetricsAfter(file, 2)
    file.close()
    assert.equal(fs.readFileSync(path, 'utf8'), `${keep.join('\n')}\n`)
  })

  it('reads a hundred thousand lines in portions of bounded size', async () => {
    const path = fresh('large')
    const lines = Array.from({ length: 100_000 }, (_, i) => encodeMetric(stepRecord(i + 1)))
    fs.writeFileSync(path, `${lines.join('\n')}\n`)
    let sum = 0
    let count = 0
    let cursor
    for (let more = true; more;) {
      const read = await readMetricsFile(path, cursor, 1 << 20)
      assert.ok(read.steps.length < 10_000)
      for (const loss of read.steps.columns.loss!) sum += loss
      count += read.steps.length
      ;({ cursor, more } = read)
    }
    assert.equal(count, lines.length)
    assert.equal(
      sum,
      lines.reduce((total, line) => total + (JSON.parse(line) as { loss: number }).loss, 0),
    )
  })
})
