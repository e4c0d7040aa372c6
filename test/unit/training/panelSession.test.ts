import assert from 'node:assert/strict'
import type { PanelAction, ToWebview } from '#shared/panelProtocol.ts'
import { defaultSettings, panelActions, readPanelState, readViewport } from '#shared/panelProtocol.ts'
import { PanelSession } from '../../../src/training/panelSession.ts'
import { panelHtml } from '../../../src/training/panelHtml.ts'
import { SampleRun } from '../../webview/sampleRuns.ts'

const pause = (milliseconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, milliseconds))

/** Waits for what the session does after a while. */
async function until(condition: () => boolean): Promise<void> {
  for (const end = Date.now() + 60_000; !condition();) {
    assert.ok(Date.now() < end, 'it did not come')
    await pause(5)
  }
}

/** Milliseconds between two messages. */
const interval = 40

const doNothing: (action: PanelAction, dir: string) => Promise<void> = () => Promise.resolve()

function setUp(...runs: readonly SampleRun[]) {
  const byDir = new Map(runs.map((run) => [run.dir, run]))
  const posted: ToWebview[] = []
  const titles: string[][] = []
  const logged: string[] = []
  const released: string[] = []
  const line = { delivers: true, delay: 0, perform: doNothing }
  const session = new PanelSession({
    post: async (message) => {
      posted.push(message)
      if (line.delay > 0) await pause(line.delay)
      return line.delivers
    },
    trackers: { acquire: (dir) => ({ tracker: byDir.get(dir)!, dispose: () => void released.push(dir) }) },
    strings: { loss: 'Loss' },
    interval,
    log: (message) => logged.push(message),
    onRuns: (infos) => titles.push(infos.map(({ name }) => name)),
    actions: { perform: (action, dir) => line.perform(action, dir), pickRuns: () => Promise.resolve([...byDir.keys()]) },
    saveCsv: () => Promise.resolve(),
    savePng: () => Promise.resolve(),
  })
  for (const run of runs.slice(0, 1)) session.add(run.dir)
  const ready = (): Promise<void> =>
    session.handle({ type: 'ready', state: readPanelState(undefined), viewport: readViewport(undefined) })
  return { session, posted, titles, logged, released, line, ready }
}

describe('the host’s side of a panel', () => {
  it('is silent until the page is there, then sends everything', async () => {
    const run = new SampleRun('/runs/a', { steps: 50 })
    const { session, posted, ready } = setUp(run)
    run.grow(1)
    await pause(60)
    assert.equal(posted.length, 0)
    await ready()
    const [hydrate] = posted
    assert.ok(hydrate?.type === 'hydrate')
    assert.equal(hydrate.strings.loss, 'Loss')
    assert.equal(hydrate.runs[0]!.step, 51)
    assert.equal(hydrate.data[0]!.steps!.x.length, 51)
    session.dispose()
  })

  it('puts many changes into few messages, and one at a time for a slow page', async () => {
    const run = new SampleRun('/runs/a', { steps: 50 })
    const { session, posted, ready, line } = setUp(run)
    await ready()
    const steps = (): number =>
      posted
        .slice(1)
        .flatMap((message) => (message.type === 'update' ? message.data.map(({ steps: rows }) => rows?.x.length ?? 0) : []))
        .reduce((sum, count) => sum + count, 0)
    /** Grows the run many times; messages that came, and how many there was time for. */
    const grow = async (times: number, each: number): Promise<readonly [number, number]> => {
      const [began, before, known] = [performance.now(), posted.length, steps()]
      for (let i = 0; i < times; i++) {
        run.grow(1)
        await pause(2)
      }
      await until(() => steps() >= known + times)
      assert.equal(steps(), known + times, 'every step once')
      return [posted.length - before, Math.ceil((performance.now() - began) / each) + 1]
    }
    const [many, room] = await grow(30, interval)
    assert.ok(many <= room, `${many} messages in the time for ${room}`)
    line.delay = 150
    const [few, less] = await grow(30, line.delay)
    assert.ok(few <= less, `${few} messages to a slow page in the time for ${less}`)
    session.dispose()
  })

  it('begins anew when a message did not arrive', async () => {
    const run = new SampleRun('/runs/a', { steps: 50 })
    const { session, posted, ready, line } = setUp(run)
    await ready()
    line.delivers = false
    run.grow(1)
    await until(() => posted.length === 2)
    line.delivers = true
    run.grow(1)
    const whole = (): boolean =>
      posted.slice(2).some((message) => message.type === 'update' && message.data[0]?.steps?.x.length === 52)
    await until(whole)
    const last = posted.at(-1)!
    assert.ok(last.type === 'update')
    assert.equal(last.data[0]!.steps!.keep, 0)
    assert.equal(last.runs?.length, 1)
    session.dispose()
  })

  it('answers a request for another view at once, with its number', async () => {
    const run = new SampleRun('/runs/a', { steps: 500 })
    const { session, posted, ready } = setUp(run)
    await ready()
    await session.handle({
      type: 'view',
      view: 7,
      settings: { ...defaultSettings, smoothing: 0 },
      viewport: { range: { min: 10, max: 20 }, width: 500 },
    })
    const last = posted.at(-1)!
    assert.ok(last.type === 'update' && last.view === 7)
    assert.deepEqual([...last.data[0]!.steps!.x], [9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21])
    assert.deepEqual(last.data[0]!.steps!.smoothed, {})
    session.dispose()
  })

  it('adds and removes runs, but never the last one', async () => {
    const runs = [new SampleRun('/runs/a', { steps: 5 }), new SampleRun('/runs/b', { steps: 5 })]
    const { session, titles, ready, released } = setUp(...runs)
    await ready()
    await session.handle({ type: 'addRuns' })
    assert.deepEqual(session.runs, ['/runs/a', '/runs/b'])
    assert.deepEqual(released, ['/runs/a'], 'one that is shown is not shown twice')
    assert.deepEqual(titles.at(-1), ['a', 'b'])
    await session.handle({ type: 'removeRun', id: '/runs/a' })
    await session.handle({ type: 'removeRun', id: '/runs/b' })
    assert.deepEqual(session.runs, ['/runs/b'])
    assert.equal(runs[0]!.listeners, 0)
    session.dispose()
    assert.equal(runs[1]!.listeners, 0)
  })

  it('does what buttons ask for, and tells of failures', async () => {
    const { session, posted, ready, line } = setUp(new SampleRun('/runs/a', { steps: 5 }))
    await ready()
    const done: string[] = []
    line.perform = (action, dir) => Promise.resolve(void done.push(`${action} ${dir}`))
    for (const action of panelActions) await session.handle({ type: 'action', action, id: '/runs/a' })
    assert.deepEqual(
      done,
      panelActions.map((action) => `${action} /runs/a`),
    )
    await session.handle({ type: 'action', action: 'pause', id: '/etc' })
    await session.handle({ type: 'action', action: 'format' as PanelAction, id: '/runs/a' })
    assert.equal(done.length, panelActions.length, 'only known actions on runs that are shown')
    line.perform = () => Promise.reject(new Error('no answer'))
    await session.handle({ type: 'action', action: 'pause', id: '/runs/a' })
    assert.deepEqual(posted.at(-1), { type: 'acted', id: '/runs/a', action: 'pause', error: 'no answer' })
    session.dispose()
  })

  it('reads kept states and viewports of any kind', () => {
    const state = {
      version: 1,
      runs: ['/a', '/a', 3],
      hidden: null,
      settings: { xAxis: 'tokens', smoothing: 5, raw: 'yes' },
      range: { min: 5, max: 5 },
    }
    assert.deepEqual(readPanelState(state), {
      version: 1,
      runs: ['/a'],
      hidden: [],
      settings: { ...defaultSettings, xAxis: 'tokens', smoothing: 0.999 },
      range: null,
    })
    for (const value of [undefined, null, 7, 'x', [], {}, { settings: [] }, { range: { min: 'a', max: NaN } }]) {
      assert.deepEqual(readPanelState(value), { version: 1, runs: [], hidden: [], settings: defaultSettings, range: null })
    }
    const whole = readPanelState({ ...state, range: { min: 1, max: 9 } })
    assert.deepEqual(readPanelState(JSON.parse(JSON.stringify(whole))), whole)
    assert.deepEqual(readViewport({ width: 1e9, range: { min: 2, max: 1 } }), { range: null, width: 16_384 })
  })

  it('has a page without inline code, whatever stands in its title', () => {
    const html = panelHtml({
      cspSource: 'https://host',
      nonce: 'abc',
      styleNonce: 'def',
      scriptUri: 'https://host/a.js',
      styleUri: 'https://host/a.css',
      title: '<script>alert("x")</script>',
      language: 'de',
    })
    const policy = /content="(default-src[^"]*)"/.exec(html)![1]!.replaceAll('&#39;', "'")
    assert.ok(
      policy.startsWith("default-src 'none'; script-src 'nonce-abc'; style-src https://host 'nonce-def'; font-src"),
      policy,
    )
    assert.doesNotMatch(html, /unsafe-(inline|eval)|<script>|style="|<style/)
    assert.match(html, /<html lang="de">/)
  })
})
