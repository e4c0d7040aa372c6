import assert from 'node:assert/strict'
import { UnslothError } from '#shared/errors.ts'
import type { RunState } from '#shared/runState.ts'
import {
  canResume,
  canTransition,
  checkTransition,
  failureOf,
  hasEnded,
  isBeating,
  newStatus,
  runStates,
  runStatusSchema,
  shownState,
} from '#shared/runState.ts'

const now = Date.parse('2026-11-21T12:00:00Z')
const status = (state: RunState, attempt = 1) => ({ ...newStatus('r', new Date(now)), state, attempt })

describe('run states', () => {
  it('lets a run go its usual way, and pause and resume', () => {
    const way: RunState[] = [
      'queued',
      'preparing',
      'loading',
      'training',
      'evaluating',
      'training',
      'saving',
      'training',
      'saving',
      'paused',
      'queued',
      'loading',
      'training',
      'saving',
      'finished',
    ]
    for (let i = 1; i < way.length; i++) assert.ok(canTransition(way[i - 1]!, way[i]!), `${way[i - 1]} → ${way[i]}`)
  })

  it('lets every living state fail or be stopped, and nothing follow an end', () => {
    for (const from of runStates) {
      assert.equal(canTransition(from, 'failed'), !hasEnded(from), from)
      assert.equal(canTransition(from, 'stopped'), !hasEnded(from), from)
      if (hasEnded(from)) for (const to of runStates) assert.equal(canTransition(from, to), false, `${from} → ${to}`)
    }
  })

  it('refuses to skip loading', () => {
    assert.throws(() => checkTransition('queued', 'training'), /cannot go from queued to training/)
    assert.throws(() => checkTransition('preparing', 'finished'), UnslothError)
  })

  it('shows a run without its process as interrupted', () => {
    for (const state of ['preparing', 'loading', 'training', 'evaluating', 'saving', 'queued'] as const) {
      assert.equal(shownState(status(state), false, now + 1), 'interrupted', state)
      assert.equal(shownState(status(state), true, now + 1e9), state)
    }
    for (const state of ['finished', 'failed', 'stopped', 'paused'] as const)
      assert.equal(shownState(status(state), false, now + 1e9), state)
  })

  it('gives a new run time to start', () => {
    assert.equal(shownState(status('queued', 0), false, now + 1_000), 'queued')
    assert.equal(shownState(status('queued', 0), false, now + 60_000), 'interrupted')
  })

  it('believes the process table before the age of a beat', () => {
    const beat = { version: 1 as const, host: 'h', machine: 'm', pid: 1, startTime: '1', at: new Date(now).toISOString() }
    assert.equal(isBeating(beat, true, now + 1e9), true)
    assert.equal(isBeating(beat, false, now), false)
    assert.equal(isBeating(beat, undefined, now + 5_000), true)
    assert.equal(isBeating(beat, undefined, now + 60_000), false)
    assert.equal(isBeating(undefined, undefined, now), false)
  })

  it('offers to resume only what can be resumed', () => {
    assert.equal(canResume('interrupted', false, true), true)
    assert.equal(canResume('stopped', false, true), true)
    assert.equal(canResume('failed', false, true), true)
    assert.equal(canResume('interrupted', false, false), false)
    assert.equal(canResume('training', true, true), false)
    assert.equal(canResume('finished', false, true), false)
  })

  it('keeps code, hint, tensor and step of a failure', () => {
    const failure = failureOf(new UnslothError('NON_FINITE', 'loss is NaN', { hint: 'lower it' }), { tensor: 'lm_head', step: 7 })
    assert.deepEqual(failure, { code: 'NON_FINITE', message: 'loss is NaN', hint: 'lower it', tensor: 'lm_head', step: 7 })
    assert.equal(failureOf(new Error('x')).code, 'INTERNAL')
    assert.deepEqual(runStatusSchema.parse({ ...status('failed'), error: failure }).error, failure)
  })
})
