import assert from 'node:assert/strict'
import type { FromWebview, ToWebview } from '#shared/panelProtocol.ts'
import { soon, type ThemeName } from './pages.ts'
import type { PanelBrowser, PanelPage } from './panelBrowser.ts'
import { startPanelBrowser } from './panelBrowser.ts'
import { SampleRun } from './sampleRuns.ts'

const lossPlot = '.chart[data-chart="loss"] .plot'
const isUpdate = (message: ToWebview): boolean => message.type === 'update'
const lastView = (panel: PanelPage): Extract<FromWebview, { type: 'view' }> | undefined =>
  panel.received.filter((message) => message.type === 'view').at(-1)

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!

describe('training panel in the browser', () => {
  let browser: PanelBrowser
  let panel: PanelPage | undefined
  before(async () => (browser = await startPanelBrowser()))
  after(() => browser.close())

  const open = async (...options: Parameters<PanelBrowser['open']>): Promise<PanelPage> =>
    (panel = await browser.open(...options))
  const sample = (name = 'stories260k', steps = 1_240): SampleRun =>
    new SampleRun(`/runs/${name}`, { steps, evalEvery: 100, checkpointEvery: 200, nonFinite: [700], gpu: true })

  afterEach(async () => {
    const problems = panel?.problems ?? []
    await panel?.close()
    panel = undefined
    assert.deepEqual(problems, [], 'errors of the console or breaches of the content security policy')
  })

  const looks: readonly (readonly [string, ThemeName, number])[] = [
    ['dark', 'dark', 1_100],
    ['light', 'light', 1_100],
    ['highContrast', 'highContrast', 1_100],
    ['narrow', 'dark', 280],
  ]
  for (const [name, theme, width] of looks) {
    it(`shows every chart and figure: ${name}`, async () => {
      const { page, ...rest } = await open({ runs: [sample()], theme, width, height: 2_600 })
      assert.equal(rest.posted[0]?.type, 'hydrate')
      await panel!.until('all charts', async () => (await page.locator('.chart canvas').count()) === 9)
      await soon(async () => {
        assert.deepEqual(await page.locator('.chart h2').allInnerTexts(), [
          'Training loss',
          'Eval loss',
          'Learning rate',
          'Gradient norm',
          'Tokens per second',
          'Memory',
          'GPU utilisation',
          'GPU temperature',
          'GPU power',
        ])
        assert.equal(await panel!.text('h1'), 'stories260k')
        assert.match(await panel!.text('.state'), /^\s*Training$/)
        assert.match(await panel!.text('.loss-value'), /^1\.\d{3}$/)
        assert.equal(await panel!.text('.fact-step dd'), '1,240 / 2,480')
        assert.equal(await panel!.text('.fact-eta dd'), '18 m')
        assert.match(await panel!.text('.fact-memory dd'), /^2\.\d GB of 2\.4 GB planned$/)
        assert.match(await panel!.text('.fact-gpu dd'), /^\d+ % · 6\d °C · \d+ W$/)
        assert.match(await panel!.text('.notices'), /not a finite number in step 700/)
        const overflow = await page.evaluate('document.documentElement.scrollWidth - document.documentElement.clientWidth')
        assert.equal(overflow, 0, 'nothing is wider than the window')
      })
      await panel!.screenshot(name)
    })
  }

  it('draws in the theme’s colours, and anew when the theme changes', async () => {
    const { page } = await open({ runs: [sample()] })
    const shown = (colour: string): Promise<boolean> =>
      page.evaluate(`(() => {
      const copy = Object.assign(
        document.createElement('canvas'), { width: 1000, height: 280 },
      ).getContext('2d', { willReadFrequently: true })
      copy.drawImage(document.querySelector('.chart.wide canvas'), 0, 0)
      const { data } = copy.getImageData(0, 0, 1000, 280)
      const [r, g, b] = ${JSON.stringify(colour)}.match(/../g).map((part) => parseInt(part, 16))
      const isIt = (i) => data[i] === r && data[i + 1] === g && data[i + 2] === b && data[i + 3] === 255
      for (let i = 0; i < data.length; i += 4) if (isIt(i)) return true
      return false
    })()`)
    await soon(async () => {
      assert.ok(await shown('3794ff'), 'the blue of the dark theme')
      assert.ok(!(await shown('1a85ff')))
    })
    await page.evaluate(`document.documentElement.style.setProperty('--vscode-charts-blue', '#1a85ff')
      document.body.className = 'vscode-light'`)
    await soon(async () => {
      assert.ok(await shown('1a85ff'), 'the blue of the light theme')
      assert.ok(!(await shown('3794ff')))
    })
  })

  it('stays smooth with a million steps: first picture under 200 ms, update under 50 ms', async function () {
    const run = new SampleRun('/runs/long', { steps: 1_000_000, evalEvery: 5_000, checkpointEvery: 20_000 })
    const openings: { readonly first: number; readonly update: number; readonly slowness: number }[] = []
    const within = ({ first, update, slowness }: (typeof openings)[number]): boolean =>
      first < 200 * slowness && update < 50 * slowness
    // Other work on this machine must not decide: time counts as the page's machine has it, and of a few openings the best one.
    while (openings.length < 8 && !openings.some(within)) {
      await panel?.close()
      const { times, posted } = await open({ runs: [run] })
      const before = await panel!.slowness()
      const [hydrate] = posted
      assert.ok(hydrate?.type === 'hydrate')
      const points = hydrate.data[0]!.steps!.x.length + hydrate.data[0]!.evals!.x.length
      assert.ok(points <= 4_000 && points > 1_000, `${points} points`)
      for (let i = 0; i < 6; i++) {
        const known = times.length
        run.grow(500)
        await panel!.until('an update', () => times.length > known)
      }
      openings.push({ first: times[0]!, update: median(times.slice(1)), slowness: (before + (await panel!.slowness())) / 2 })
      for (const message of posted.filter(isUpdate)) {
        assert.ok(message.type === 'update')
        const sent = message.data.flatMap(({ steps }) => (steps === undefined ? [] : [steps.x.length]))
        assert.ok(
          sent.every((count) => count <= 12),
          `updates are tails: ${sent.join()}`,
        )
      }
    }
    const told = openings
      .map(
        ({ first, update, slowness }) =>
          `${first.toFixed(0)} and ${update.toFixed(0)} ms at ${slowness.toFixed(1)} times the time at rest`,
      )
      .join('; ')
    this.test!.title += ` (${told})`
    assert.ok(openings.some(within), told)
  })

  it('follows a growing run, at most four times a second', async () => {
    const run = sample('growing', 200)
    const { posted, page } = await open({ runs: [run] })
    const start = Date.now()
    const before = posted.length
    await panel!.until('a few updates', () => {
      run.grow(1)
      return posted.length >= before + 4
    })
    const step = run.series.steps.last('step')
    await panel!.until('the last step', async () =>
      (await panel!.text('.fact-step dd')).startsWith(`${step.toLocaleString('en')} `),
    )
    const seconds = (Date.now() - start) / 1_000
    const updates = posted.length - before
    assert.ok(updates <= Math.ceil(seconds * 4) + 1, `${updates} updates in ${seconds} s`)
    await soon(async () => {
      assert.equal(await page.evaluate('Number(document.querySelector("progress").value)'), step)
      assert.equal(await panel!.text('.fact-elapsed dt'), 'Elapsed')
    })
    run.setInfo({ state: 'finished', alive: false })
    await panel!.until('the end', async () => (await panel!.text('.fact-elapsed dt')) === 'Took')
  })

  it('sends nothing while it is hidden and everything when it is shown again', async () => {
    const run = sample('hidden', 300)
    const { posted, session } = await open({ runs: [run] })
    const before = posted.length
    session.setVisible(false)
    run.grow(50)
    await new Promise((resolve) => setTimeout(resolve, 400))
    assert.equal(posted.length, before)
    session.setVisible(true)
    await panel!.until('a complete snapshot', () => posted.length > before)
    const message = posted.at(-1)!
    assert.ok(message.type === 'hydrate')
    assert.equal(message.data[0]!.steps!.x.length, 350)
    await panel!.until('the step', async () => (await panel!.text('.fact-step dd')).startsWith('350 '))
  })

  it('zooms by dragging to full resolution and back by double click', async () => {
    const run = new SampleRun('/runs/zoom', { steps: 200_000 })
    const { page, posted } = await open({ runs: [run] })
    const box = (await page.locator(`${lossPlot} .u-over`).boundingBox())!
    await page.mouse.move(box.x + box.width * 0.5, box.y + 60)
    await page.mouse.down()
    await page.mouse.move(box.x + box.width * 0.502, box.y + 60, { steps: 4 })
    await page.mouse.move(box.x + box.width * 0.51, box.y + 60, { steps: 4 })
    await page.mouse.up()
    await panel!.until('the request', () => lastView(panel!)?.viewport.range != null)
    const { range } = lastView(panel!)!.viewport
    assert.ok(Math.abs(range!.min - 100_000) < 1_000 && Math.abs(range!.max - 102_000) < 1_000, JSON.stringify(range))
    await panel!.until('the points', () => posted.some((message) => message.type === 'update' && message.view === 1))
    const detail = posted.filter((message) => message.type === 'update').find(({ view }) => view === 1)!
    assert.equal(detail.data[0]!.steps!.bucket, 1, 'every step is there')
    // All charts show the same part: their names for screen readers tell of a last step.
    await soon(async () => {
      const names = await page.evaluate<string[]>(
        '[...document.querySelectorAll(".plot:has(canvas)")].map((plot) => plot.ariaLabel)',
      )
      const steps = names.map((name) => Number(/Step ([\d,]+)/.exec(name)?.[1]?.replaceAll(',', '')))
      assert.ok(steps.length > 3 && steps.every((step) => Math.abs(step - 102_000) < 2_000), names.join('\n'))
    })
    await page.mouse.dblclick(box.x + box.width * 0.5, box.y + 60)
    await panel!.until('the way back', () => lastView(panel!)?.viewport.range === null)
  })

  it('zooms and moves by wheel and keyboard', async () => {
    const { page } = await open({ runs: [sample()] })
    const box = (await page.locator(`${lossPlot} .u-over`).boundingBox())!
    await page.mouse.move(box.x + box.width / 2, box.y + 60)
    await page.mouse.wheel(0, -200)
    await page.waitForTimeout(150)
    assert.equal(lastView(panel!), undefined, 'a plain wheel scrolls')
    await page.keyboard.down('Control')
    await page.mouse.wheel(0, -200)
    await page.keyboard.up('Control')
    await panel!.until('the zoom', () => lastView(panel!) !== undefined)
    const zoomed = lastView(panel!)!.viewport.range!
    assert.ok(zoomed.max - zoomed.min < 1_239 * 0.6 && Math.abs((zoomed.min + zoomed.max) / 2 - 620) < 20, JSON.stringify(zoomed))
    await page.locator(lossPlot).focus()
    await page.keyboard.press('+')
    await panel!.until(
      'a closer zoom',
      () => lastView(panel!)!.viewport.range!.max - lastView(panel!)!.viewport.range!.min < (zoomed.max - zoomed.min) * 0.6,
    )
    await page.keyboard.press('0')
    await panel!.until('everything', () => lastView(panel!)!.viewport.range === null)
    await page.mouse.move(0, 0)
    // First to the last step, then back; what is said of the run's progress now and then is no answer.
    await soon(async () => {
      await page.keyboard.press('ArrowLeft')
      assert.match(await panel!.said(), /^Step 1,2[0-3]\d: raw [\d.]+, smoothed [\d.]+, eval [\d.]+$/)
    })
  })

  it('has one crosshair over all charts', async () => {
    const { page } = await open({ runs: [sample()] })
    const rate = '.chart[data-chart="learningRate"] .value'
    const last = await panel!.text(rate)
    const box = (await page.locator(`${lossPlot} .u-over`).boundingBox())!
    const note = (): Promise<string> => panel!.text('.chart[data-chart="loss"] .mark-note')
    await page.mouse.move(box.x + box.width * 0.3, box.y + 80)
    await soon(async () => {
      assert.match(await note(), /^Step 37\d$/)
      assert.notEqual(await panel!.text(rate), last)
    })
    await page.mouse.move(box.x + box.width * (699 / 1_239), box.y + 80)
    await soon(async () => assert.match(await note(), /^Step 700 · not finite: loss is NaN in step 700$/))
    await panel!.screenshot('crosshair')
    await page.mouse.move(0, 0)
    await soon(async () => assert.equal(await panel!.text(rate), last))
  })

  it('asks the host for smoothing, clipping and another axis', async () => {
    const { page, posted } = await open({ runs: [sample()] })
    await page.locator('input[type=range]').fill('1000')
    await panel!.until('the weight', () => lastView(panel!)?.settings.smoothing === 0.999)
    const dropdowns = page.locator('vscode-dropdown')
    await dropdowns.nth(1).click()
    await page.locator('vscode-option', { hasText: 'Clip above p95' }).click()
    await panel!.until('the clipping', () => lastView(panel!)?.settings.clip === 'p95')
    await panel!.until('the ceiling', () =>
      posted.some((message) => message.type === 'update' && message.data[0]?.ceilings.loss !== undefined),
    )
    await dropdowns.nth(0).click()
    await page.locator('vscode-option', { hasText: 'Tokens' }).click()
    await panel!.until('the axis', () => lastView(panel!)?.settings.xAxis === 'tokens')
    await page.locator('vscode-checkbox', { hasText: 'Log scale' }).click()
    await page.locator('vscode-checkbox', { hasText: 'Raw values' }).click()
    await soon(async () => assert.equal(await page.locator('.chart[data-chart="loss"] .reading.raw').count(), 0))
    await panel!.screenshot('log-clipped')
  })

  it('lays runs over each other', async () => {
    const runs = [
      sample('base'),
      new SampleRun('/runs/higher rate', { steps: 900, seed: 9, evalEvery: 90 }),
      new SampleRun('/runs/long warmup', { steps: 1_500, seed: 5 }),
    ]
    runs[1]!.setInfo({ state: 'finished', alive: false })
    const { page, session } = await open({ runs })
    await page.locator('.legend').waitFor({ state: 'hidden' })
    await page.locator('vscode-button', { hasText: 'Compare with' }).click()
    await panel!.until('the runs', async () => (await page.locator('.legend li').count()) === 3)
    await panel!.until(
      'their curves',
      async () => (await page.locator('.chart[data-chart="loss"] .reading.smoothed').count()) === 3,
    )
    await panel!.screenshot('compare')
    await page.locator('.run-name', { hasText: 'higher rate' }).click()
    await soon(async () => assert.equal(await panel!.text('h1'), 'higher rate'))
    await page.locator('.legend li', { hasText: 'long warmup' }).locator('vscode-checkbox').click()
    await panel!.until(
      'two curves',
      async () => (await page.locator('.chart[data-chart="loss"] .reading.smoothed').count()) === 2,
    )
    await page.locator('.legend li', { hasText: 'base' }).locator('vscode-button').click()
    await panel!.until('two runs', async () => (await page.locator('.legend li').count()) === 2)
    await soon(() => {
      assert.deepEqual(session.runs, ['/runs/higher rate', '/runs/long warmup'])
      assert.equal(runs[0]!.listeners, 0, 'a run that is not shown is not listened to')
    })
  })

  it('asks for stop, pause and resume, and shows why something failed', async () => {
    const run = sample()
    const { page, actions } = await open({ runs: [run] })
    const labels = (): Promise<string[]> => page.locator('.actions vscode-button').allInnerTexts()
    await soon(async () =>
      assert.deepEqual(
        (await labels()).map((label) => label.trim()),
        ['Pause', 'Save and stop', 'Stop now'],
      ),
    )
    await page.locator('[data-action=pause]').click()
    await panel!.until('the action', () => actions.length === 1)
    assert.deepEqual(actions[0], { action: 'pause', dir: '/runs/stories260k' })
    await page.locator('[data-action=stopAndSave][disabled]').waitFor()
    run.setInfo({ state: 'paused', detail: 'after step 1240' })
    await panel!.until('the new state', async () => (await labels()).some((label) => label.includes('Resume')))
    panel!.failure = new Error('The run does not answer.')
    await page.locator('[data-action=resume]').click()
    await page.locator('.notice.error').filter({ hasText: 'The run does not answer.' }).waitFor()
    await page.locator('[data-action=resume]:not([disabled])').waitFor()
    await page.locator('[data-action=openRecipe]').click()
    await panel!.until('the recipe', () => actions.some(({ action }) => action === 'openRecipe'))
  })

  const endings: readonly (readonly [string, Parameters<SampleRun['setInfo']>[0], RegExp, readonly string[]])[] = [
    [
      'interrupted',
      { state: 'interrupted', alive: false, resumable: true, checkpointStep: 1200 },
      /process of this run is gone[^]*checkpoint of step 1,200/,
      ['Resume from step 1,200'],
    ],
    [
      'failed',
      {
        state: 'failed',
        alive: false,
        error: { code: 'DATA', message: 'line 7: no "messages".', hint: 'Name the column.', tensor: null, step: 7 },
      },
      /line 7[^]*Name the column/,
      [],
    ],
    [
      'finished',
      { state: 'finished', alive: false, outputs: [{ kind: 'adapter', path: 'adapter' }] },
      /^$/,
      ['Generate with the result', 'Merge the adapter into the model'],
    ],
    ['missing', { state: 'missing', alive: false }, /folder \/runs\/ended is gone/, []],
  ]
  for (const [name, info, notice, buttons] of endings) {
    it(`shows a run that is ${name}`, async () => {
      const run = new SampleRun('/runs/ended', { steps: 1_240, info })
      const { page } = await open({ runs: [run], height: 800 })
      await soon(async () => {
        assert.match(await page.locator('.notices').innerText(), notice)
        assert.deepEqual(
          (await page.locator('.actions vscode-button').allInnerTexts()).map((label) => label.trim()),
          buttons,
        )
        assert.equal(await page.locator('.fact-eta').count(), 0)
      })
      await panel!.screenshot(`state-${name}`)
    })
  }

  it('says what it waits for before the first step', async () => {
    const run = new SampleRun('/runs/new', {
      steps: 0,
      info: { state: 'preparing', detail: 'tokenizing 1,100 rows', step: 0, totalSteps: null },
    })
    const { page } = await open({ runs: [run], height: 900 })
    await soon(async () => {
      assert.match(await panel!.text('.state'), /Preparing · tokenizing 1,100 rows/)
      assert.equal(await panel!.text('.chart[data-chart="loss"] .empty'), 'Waiting for the first step')
    })
    await panel!.screenshot('state-new')
    run.setInfo({ state: 'training', totalSteps: 60 })
    run.grow(1)
    await panel!.until('the first step', async () => (await page.locator('.chart[data-chart="loss"] canvas').count()) === 1)
  })

  it('comes back after a reload as it was', async () => {
    const { page, received, posted } = await open({ runs: [sample()] })
    await page.locator('vscode-checkbox', { hasText: 'Log scale' }).click()
    await page.locator(lossPlot).focus()
    await page.keyboard.press('+')
    await panel!.until('the zoom', () => lastView(panel!) !== undefined)
    const { range } = lastView(panel!)!.viewport
    await soon(async () => {
      const kept = JSON.parse(await page.evaluate('sessionStorage.getItem("kept")')) as {
        range: unknown
        settings: { logScale: boolean }
      }
      assert.deepEqual(Object.keys(kept).sort(), ['hidden', 'range', 'runs', 'settings', 'version'], 'no data is kept')
      assert.deepEqual([kept.range, kept.settings.logScale], [range, true])
    })
    const before = posted.length
    await page.reload()
    await panel!.until(
      'the second start',
      () => received.filter(({ type }) => type === 'ready').length === 2 && posted.length > before,
    )
    const again = received.filter((message) => message.type === 'ready').at(-1)!
    assert.ok(posted.slice(before).some(({ type }) => type === 'hydrate'))
    assert.deepEqual(again.viewport.range, range)
    assert.equal(again.state.settings.logScale, true)
    assert.deepEqual(again.state.runs, ['/runs/stories260k'])
    await panel!.until('the charts', async () => (await page.locator('.chart canvas').count()) > 0)
  })

  it('exports the charts as a picture and asks for the metrics as CSV', async () => {
    const { page, saved } = await open({ runs: [sample()] })
    await page.locator('vscode-button[aria-label="Save charts as PNG"]').click()
    await panel!.until('the picture', () => saved.png.length === 1)
    const png = Buffer.from(saved.png[0]!)
    assert.equal(png.subarray(1, 4).toString('latin1'), 'PNG')
    assert.ok(png.readUInt32BE(16) > 900 && png.readUInt32BE(20) > 900, 'all charts are on it')
    panel!.keep('export.png', png)
    await page.locator('vscode-button[aria-label="Save metrics as CSV"]').click()
    await panel!.until('the table', () => saved.csv.length === 1)
    assert.deepEqual(saved.csv, ['/runs/stories260k'])
  })

  it('can be read without seeing it', async () => {
    const { page } = await open({ runs: [sample()], height: 2_600 })
    await soon(async () =>
      assert.match(
        (await page.locator(lossPlot).getAttribute('aria-label')) ?? '',
        /^Training loss: 1\.\d+ at Step 1,240, lowest 1\.\d+, highest 4\.\d+\. Left and right/,
      ),
    )
    await soon(async () =>
      assert.match(await panel!.said(), /^stories260k: Training, step 1,240 of 2,480, loss 1\.\d+\. 18 m left\.$/),
    )
    await page.locator('vscode-checkbox', { hasText: 'Tables' }).click()
    await panel!.until('the tables', async () => (await page.locator('.chart table').count()) === 9)
    await soon(async () =>
      assert.match(await panel!.text('.chart[data-chart="memory"] table'), /measured\s+planned[\s\S]*Last\s+2\.\d GB\s+2\.4 GB/),
    )
    const nameless = await page.evaluate(`
      [...document.querySelectorAll('vscode-button, vscode-dropdown, vscode-checkbox, input, button')]
        .filter((element) => !element.ariaLabel && !element.getAttribute('aria-label') && !element.textContent.trim())
        .map((element) => element.outerHTML)`)
    assert.deepEqual(nameless, [])
    await panel!.screenshot('tables')
  })

  it('holds still when motion is not wanted', async () => {
    const { page } = await open({ runs: [sample()], height: 600 })
    const animation = (name: string): Promise<void> =>
      soon(async () =>
        assert.equal(
          await page.evaluate('getComputedStyle(document.querySelector(".codicon-modifier-spin")).animationName'),
          name,
        ),
      )
    await animation('codicon-spin')
    await page.evaluate('document.body.classList.add("vscode-reduce-motion")')
    await animation('none')
    await page.evaluate('document.body.classList.remove("vscode-reduce-motion")')
    await page.emulateMedia({ reducedMotion: 'reduce' })
    await animation('none')
  })
})
