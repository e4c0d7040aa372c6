import assert from 'node:assert/strict'
import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { csvChunks, writeChunks } from '../../../src/training/exportCsv.ts'
import { RunSeries } from '../../../src/training/runSeries.ts'
import { batch, lossBatch } from './support.ts'

const text = (...runs: Parameters<typeof csvChunks>[0]): string => [...csvChunks(runs)].join('')

describe('metrics as CSV', () => {
  it('has one row for a step, with the evaluation of the step', () => {
    const series = new RunSeries()
    series.append(
      batch({
        steps: { step: [1, 2, 4], epoch: [0.1, 0.2, 0.4], loss: [2.5, NaN, Infinity], reward: [NaN, 1, NaN] },
        evals: { step: [2, 3], epoch: [0.2, 0.3], eval_loss: [2, NaN] },
      }),
    )
    assert.equal(
      text({ name: 'a', series }),
      ['step,epoch,loss,reward,eval_loss', '1,0.1,2.5,,', '2,0.2,NaN,1,2', '3,0.3,,,NaN', '4,0.4,Infinity,,', ''].join('\n'),
    )
  })

  it('names the runs when there are several', () => {
    const [a, b] = [new RunSeries(), new RunSeries()]
    a.append(batch({ steps: { step: [1], loss: [2] } }))
    b.append(batch({ steps: { step: [1], loss: [3], reward: [4] } }))
    assert.equal(
      text({ name: 'with "quotes", and comma', series: a }, { name: '=1+1', series: b }),
      'run,step,loss,reward\n"with ""quotes"", and comma",1,2,\n\'=1+1,1,3,4\n',
    )
  })

  it('is whole at full resolution, in pieces', () => {
    const series = new RunSeries()
    series.append(lossBatch(20_000))
    const chunks = [...csvChunks([{ name: 'a', series }])]
    assert.ok(chunks.length > 3)
    const lines = chunks.join('').trimEnd().split('\n')
    assert.equal(lines.length, 20_001)
    assert.equal(Number(lines[12_345]!.split(',')[1]), series.steps.column('loss')![12_344])
  })

  it('appears complete or not at all', async () => {
    const folder = fs.mkdtempSync(join(tmpdir(), 'unsloth-csv-'))
    try {
      const path = join(folder, 'a.csv')
      fs.writeFileSync(path, 'before')
      const broken = function* (): Generator<string> {
        yield 'half'
        throw new Error('no room')
      }
      await assert.rejects(
        writeChunks(path, broken()),
        (error) => UnslothError.is(error, 'FILE_WRITE') && error.message.includes(path),
      )
      assert.equal(fs.readFileSync(path, 'utf8'), 'before')
      assert.deepEqual(fs.readdirSync(folder), ['a.csv'])
      await writeChunks(path, ['x', 'y'])
      assert.equal(fs.readFileSync(path, 'utf8'), 'xy')
      await assert.rejects(writeChunks(join(folder, 'none', 'a.csv'), ['x']), (error) => UnslothError.is(error, 'FILE_WRITE'))
    } finally {
      fs.rmSync(folder, { recursive: true })
    }
  })
})
