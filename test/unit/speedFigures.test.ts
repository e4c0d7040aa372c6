import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { keepSpeed, readSpeeds, secondsPerToken, speedFile } from '../../engine/bench/speedFigures.ts'
import type { StepBench } from '../../engine/bench/step.ts'

describe('measured speeds', () => {
  let folder: string
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'unsloth-speed-'))
  })
  after(() => rmSync(folder, { recursive: true }))

  const step = (device: string, shape: string, gflops: number, tokensPerSecond: number) =>
    ({ device, shape, numbers: 'f32', gflops, tokensPerSecond }) as unknown as StepBench

  it('are kept by device and shape, the last measurement of each', () => {
    const path = join(folder, 'deep', 'speed.json')
    keepSpeed(step('2 threads', 'tiny', 100, 1_000_000), path)
    keepSpeed(step('2 threads', 'large', 400, 1_000), path)
    keepSpeed(step('8 threads', 'tiny', 150, 1_500_000), path)
    keepSpeed(step('cuda:0', 'large', 400_000, 10_000), path)
    assert.deepEqual(
      readSpeeds(path).map(({ device, shape, gflops }) => [device, shape, gflops]),
      [
        ['cuda:0', 'large', 400_000],
        ['cpu', 'tiny', 150],
        ['cpu', 'large', 400],
      ],
    )
    // 4e8 operations a token at the large model's 400 GFLOP/s; 1e5 at the tiny one's 150.
    assert.equal(secondsPerToken(4e8, 'cpu', readSpeeds(path)), 4e8 / 400e9)
    assert.equal(secondsPerToken(1e5, 'cpu', readSpeeds(path)), 1e5 / 150e9)
    assert.equal(secondsPerToken(4e8, 'cuda:1', readSpeeds(path)), 4e8 / 400_000e9)
    assert.equal(secondsPerToken(4e8, 'cuda:0', []), undefined)
  })

  it('are nothing where the file is not ours', () => {
    const path = join(folder, 'speed.json')
    assert.deepEqual(readSpeeds(path), [])
    writeFileSync(path, '{"version": 1, "figures": [{"device": 1}]}')
    assert.deepEqual(readSpeeds(path), [])
    keepSpeed(step('cpu', 's', 1, 1), path)
    assert.equal((JSON.parse(readFileSync(path, 'utf8')) as { figures: object[] }).figures.length, 1)
    assert.equal(speedFile({ XDG_CACHE_HOME: '/c' }), join('/c', 'unsloth-vscode', 'speed.json'))
  })
})
