import assert from 'node:assert/strict'
import type { RunInfo } from '#shared/panelProtocol.ts'
import { fill, panelStrings } from '#shared/panelStrings.ts'
import { shownStatesOf } from './states.ts'
import {
  actionsOf,
  announcement,
  elapsedSeconds,
  factsOfRun,
  lossText,
  noticesOf,
  stateIcons,
} from '../../../webview/training/runFacts.ts'

const now = 10_000_000
const info = (some: Partial<RunInfo> = {}): RunInfo => ({
  id: '/runs/a',
  name: 'a',
  state: 'training',
  detail: null,
  alive: true,
  resumable: false,
  step: 1_240,
  totalSteps: 5_000,
  epoch: 0.5,
  loss: 1.7321,
  evalLoss: null,
  bestEvalLoss: null,
  tokensPerSecond: 5_100,
  etaSeconds: 1_080,
  startedAt: now - 60_000,
  endedAt: null,
  updatedAt: now - 5_000,
  attempt: 1,
  error: null,
  warnings: [],
  outputs: [],
  device: 'cpu',
  model: null,
  dataset: null,
  method: null,
  plannedBytes: null,
  measuredBytes: null,
  gpu: null,
  checkpointStep: null,
  nonFiniteSteps: 0,
  rows: 1_240,
  loading: false,
  invalidLines: 0,
  problem: null,
  ...some,
})
const actions = (some: Partial<RunInfo>): string[] => actionsOf(info(some), panelStrings).map(({ action }) => action)
const facts = (some: Partial<RunInfo>): Record<string, string> =>
  Object.fromEntries(factsOfRun(info(some), panelStrings, now).map(({ key, value }) => [key, value]))

describe('what the head of the panel says', () => {
  it('offers what can be done in each state', () => {
    assert.deepEqual(actions({ state: 'training' }), ['pause', 'stopAndSave', 'stopNow'])
    assert.deepEqual(actions({ state: 'loading' }), ['stopNow'])
    assert.deepEqual(actions({ state: 'queued' }), ['stopNow'])
    assert.deepEqual(actions({ state: 'paused' }), ['resume', 'stopAndSave', 'stopNow'])
    assert.deepEqual(actions({ state: 'paused', alive: false, resumable: true }), ['resume'])
    assert.deepEqual(actions({ state: 'interrupted', alive: false, resumable: true }), ['resume'])
    assert.deepEqual(actions({ state: 'interrupted', alive: false }), [])
    assert.deepEqual(actions({ state: 'finished', alive: false }), ['generate'])
    assert.deepEqual(actions({ state: 'finished', alive: false, outputs: [{ kind: 'adapter', path: 'adapter' }] }), [
      'generate',
      'merge',
    ])
    assert.deepEqual(actions({ state: 'missing', alive: false }), [])
    const label = actionsOf(info({ state: 'failed', alive: false, resumable: true, checkpointStep: 1_200 }), panelStrings)[0]!
      .label
    assert.equal(label, 'Resume from step 1,200')
  })

  it('has an icon and a name for every state', () => {
    for (const state of shownStatesOf()) {
      assert.ok(stateIcons[state] !== undefined, state)
      assert.ok(panelStrings[state].length > 0, state)
    }
  })

  it('tells figures that are known, and no others', () => {
    assert.deepEqual(facts({}), {
      step: '1,240 / 5,000',
      epoch: '0.50',
      eta: '18 m',
      elapsed: '1 m 00 s',
      speed: '5.10K tok/s',
      device: 'cpu',
    })
    assert.equal(facts({ plannedBytes: 2 ** 31 }).memory, '2.0 GB planned')
    assert.equal(facts({ plannedBytes: 2 ** 31, measuredBytes: 2 ** 30 }).memory, '1.0 GB of 2.0 GB planned')
    assert.equal(
      facts({ gpu: { utilization: 86.6, memoryBytes: 41 * 2 ** 30, temperature: 64, power: null } }).gpu,
      '87 % · 41.0 GB · 64 °C',
    )
    assert.equal(facts({}).gpu, undefined)
    assert.equal(facts({ alive: false }).eta, undefined)
    assert.equal(facts({ state: 'paused' }).eta, undefined)
    assert.equal(facts({ totalSteps: null, step: 0 }).step, undefined)
  })

  it('counts time to the end, and not on for a lost run', () => {
    assert.equal(elapsedSeconds(info(), now), 60)
    assert.equal(elapsedSeconds(info({ alive: false, endedAt: now - 30_000 }), now), 30)
    assert.equal(elapsedSeconds(info({ alive: false, state: 'interrupted' }), now), 55)
    assert.equal(elapsedSeconds(info({ startedAt: null }), now), null)
  })

  it('says when the loss is not a number', () => {
    assert.equal(lossText(info(), panelStrings), '1.732')
    assert.equal(lossText(info({ loss: null, nonFiniteSteps: 1 }), panelStrings), 'not finite')
    assert.equal(lossText(info({ loss: null, rows: 0 }), panelStrings), '–')
    const texts = (some: Partial<RunInfo>): string[] => noticesOf(info(some), 700, panelStrings).map(({ text }) => text)
    assert.deepEqual(texts({ nonFiniteSteps: 1 }), ['The loss was not a finite number in step 700.'])
    assert.deepEqual(texts({ nonFiniteSteps: 12 }), ['The loss was not a finite number in 12 steps, the last time in step 700.'])
  })

  it('shows errors with their hints, and not all of a hundred warnings', () => {
    const error = { code: 'DATA', message: 'empty', hint: 'Add rows.', tensor: null, step: null }
    assert.deepEqual(noticesOf(info({ state: 'failed', error }), undefined, panelStrings), [
      { level: 'error', text: 'empty', hint: 'Add rows.' },
    ])
    assert.deepEqual(noticesOf(info({ error }), undefined, panelStrings), [], 'an error of an attempt before this one')
    const many = noticesOf(info({ warnings: Array.from({ length: 100 }, (_, i) => `warning ${i}`) }), undefined, panelStrings)
    assert.equal(many.length, 6)
    assert.equal(many.at(-1)!.text, 'and 95 more')
    const lost = noticesOf(info({ state: 'interrupted', alive: false, checkpointStep: 20 }), undefined, panelStrings)
    assert.equal(lost[0]!.hint, 'It can go on from the checkpoint of step 20.')
  })

  it('says it in one sentence', () => {
    assert.equal(announcement(info(), panelStrings), 'a: Training, step 1,240 of 5,000, loss 1.732. 18 m left.')
    assert.equal(fill('{0} of {1}, {2}', 1, 'two'), '1 of two, {2}')
  })
})
