import assert from 'node:assert/strict'
import { mkdirSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Frame, Page } from 'playwright-core'
import { makePackage, maxPackageBytes } from '../../tools/package.mjs'
import { Host } from '../host/runner/host.mjs'
import { fillWorkspace } from '../host/workspace.ts'

const images = fileURLToPath(new URL('../../docs/images/', import.meta.url))

/** Questions and answers with a recipe, of which the answers are trained. */
function fillQuestions(folder: string): void {
  const rows = [
    ['Who called the grapes sour?', 'The fox, because he could not reach them.'],
    ['Who won the race?', 'The tortoise: she never stopped.'],
    ['What did the crow drop?', 'Her cheese, when the fox praised her voice.'],
    ['Why did the boy cry wolf?', 'To see the villagers run.'],
  ] as const
  writeFileSync(
    join(folder, 'questions.jsonl'),
    rows.map(([prompt, completion]) => JSON.stringify({ prompt: `${prompt}\n`, completion })).join('\n'),
  )
  writeFileSync(
    join(folder, 'questions.finetune.yaml'),
    'version: 1\nmodel: stories260k\ndata:\n  local_dataset: ./questions.jsonl\ntraining:\n  max_seq_length: 256\n  max_steps: 20\n',
  )
}

/** With UNSLOTH_IMAGES=1 the pictures of the README are made anew. */
const keepImages = process.env.UNSLOTH_IMAGES === '1'

describe('the packed extension in a browser', function () {
  this.timeout(900_000)
  let host: Host
  let page: Page
  let workspace: string
  let packed: string

  before(async () => {
    packed = await makePackage('linux-x64')
    host = await Host.start({
      vsix: packed,
      viewport: { width: 1500, height: 900 },
      settings: { 'workbench.colorTheme': 'Default Dark Modern', 'workbench.secondarySideBar.defaultVisibility': 'hidden' },
    })
    workspace = host.makeFolder('fables')
    fillWorkspace(workspace)
    fillQuestions(workspace)
    page = await host.open(workspace)
    // Before the extension's contributions are there, the palette does not know them.
    await page.locator('.activitybar .action-label[aria-label="Unsloth"]').waitFor()
  })
  afterEach(async function () {
    if (this.currentTest?.state === 'failed')
      await page.screenshot({
        path: join(tmpdir(), `unsloth-failed-${this.currentTest.title.slice(0, 20).replaceAll(/\W/g, '-')}.png`),
      })
  })
  after(() => host.stop())

  const shot = async (name: string): Promise<void> => {
    const png = await page.screenshot({ animations: 'disabled', caret: 'hide' })
    assert.ok(png.length > 10_000, `${name} is empty`)
    if (!keepImages) return
    mkdirSync(images, { recursive: true })
    writeFileSync(join(images, `${name}.png`), png)
  }
  const input = (): ReturnType<Page['locator']> => page.locator('.quick-input-widget:not([inert]) input[type=text]').first()
  /** Opens a quick input by keys; the one before may still be closing. */
  const openInput = async (...keys: string[]): Promise<void> => {
    await page.locator('.quick-input-widget').waitFor({ state: 'hidden' })
    for (const key of keys) await page.keyboard.press(key)
    await input().waitFor()
  }
  const choose = async (text: string, shown: string): Promise<void> => {
    await input().fill(text)
    await page.locator('.quick-input-list .monaco-list-row.focused').filter({ hasText: shown }).waitFor()
    await page.keyboard.press('Enter')
  }
  const palette = async (command: string): Promise<void> => {
    await openInput('F1')
    await choose(`>${command}`, command)
  }
  /** Opens a file by its name, of which others may have a part: those seen lately stand first in the list. */
  const openFile = async (name: string): Promise<void> => {
    const tab = page.locator(`.tab.active[data-resource-name="${name}"]`)
    const focused = page.locator('.quick-input-list .monaco-list-row.focused .label-name')
    for (const end = Date.now() + 180_000; (await tab.count()) === 0;) {
      assert.ok(Date.now() < end, `${name} does not open`)
      await openInput('Control+P')
      await input().fill(name)
      await focused.waitFor()
      for (let row = 0; row < 10 && (await focused.textContent()) !== name; row++) await page.keyboard.press('ArrowDown')
      await page.keyboard.press((await focused.textContent()) === name ? 'Enter' : 'Escape')
      await tab.waitFor({ timeout: 10_000 }).catch(() => undefined)
    }
  }
  /** A page of ours: a frame inside frames. */
  const frameWith = async (selector: string): Promise<Frame> => {
    for (const end = Date.now() + 180_000; Date.now() < end;) {
      for (const frame of page.frames()) if ((await frame.$(selector).catch(() => null)) !== null) return frame
      await page.waitForTimeout(100)
    }
    throw new Error(`no page with ${selector} opened`)
  }
  const panel = (): Promise<Frame> => frameWith('header.run-header')
  /** Waits until the palette offers a command of ours, or no longer does. */
  const offers = async (command: string, now: boolean, window = page): Promise<void> => {
    const list = window.locator('.quick-input-list .monaco-list-row')
    const wanted = list.filter({ hasText: new RegExp(`^Unsloth: ${command.replace('…', '')}`) })
    const look = async (): Promise<boolean> => {
      await window.locator('.quick-input-widget').waitFor({ state: 'hidden' })
      await window.keyboard.press('F1')
      const line = window.locator('.quick-input-widget:not([inert]) input[type=text]').first()
      // A command that is always there and does not match tells when the list is the one of what is typed.
      const always = list.filter({ hasText: /^Unsloth: Show Engine Log/ })
      await line.fill('>Unsloth: Show Engine Log')
      await always.waitFor()
      await line.fill(`>Unsloth: ${command}`)
      await always.waitFor({ state: 'detached' })
      const found = (await wanted.count()) > 0
      await window.keyboard.press('Escape')
      return found
    }
    // What the palette knows follows a run's state when it can.
    for (const end = Date.now() + 120_000; (await look()) !== now;)
      assert.ok(Date.now() < end, `${command} is ${now ? 'not ' : ''}offered`)
  }
  const theme = async (name: string, kind: string): Promise<void> => {
    await openInput('Control+K', 'Control+T')
    await choose(name, name)
    await page.locator(`.monaco-workbench.${kind}`).first().waitFor()
    await page.waitForTimeout(600)
  }
  /** The extension's views, whatever is open. */
  const showViews = async (): Promise<void> => {
    await palette('View: Show Unsloth')
    await page.locator('.pane-header').filter({ hasText: 'Runs' }).first().waitFor()
  }

  it('is small enough', () => {
    assert.ok(statSync(packed).size <= maxPackageBytes)
  })

  it('helps with a recipe', async () => {
    await openFile('finetune.yaml')
    await page.locator('.codelens-decoration').filter({ hasText: '▶ Fine-tune' }).waitFor()
    await page.locator('.codelens-decoration').filter({ hasText: 'GB' }).first().waitFor()
    await openInput('Control+G')
    await input().fill(':14')
    await page.keyboard.press('Enter')
    await page.locator('.quick-input-widget').waitFor({ state: 'hidden' })
    await page.keyboard.press('End')
    await page.keyboard.press('Enter')
    await page.keyboard.type('lr_')
    await page
      .locator('.suggest-widget.visible .monaco-list-row')
      .filter({ hasText: /lr_scheduler_type|lr_end/ })
      .first()
      .waitFor()
    await shot('completion')
    await page.keyboard.press('Escape')
    for (let back = 0; back < 4; back++) await page.keyboard.press('Control+Z')
    const word = page
      .locator('.view-line span')
      .filter({ hasText: /^learning_rate$/ })
      .first()
    await word.hover()
    await page.locator('.monaco-hover:not(.hidden) .hover-contents').first().waitFor()
    await shot('hover')
    await page.keyboard.press('Escape')
    await palette('File: Revert File')
  })

  it('offers what can be done now, and nothing else', async () => {
    for (const [command, now] of [
      ['Fine-tune', true],
      ['Convert to Recipe', true],
      ['Stop…', false],
      ['Pause', false],
      ['Compare Runs', false],
      ['Copy Path', false],
    ] as const) {
      await offers(command, now)
    }
    const play = page.locator('.editor-actions .action-label[aria-label^="Fine-tune"]')
    await play.waitFor()
    await openFile('questions.jsonl')
    await play.waitFor({ state: 'detached' })
  })

  it('fine-tunes from the palette; the panel shows a falling curve', async () => {
    await openFile('long.finetune.yaml')
    await palette('Unsloth: Fine-tune')
    const long = await panel()
    await long.locator('header.run-header[data-state="training"]').waitFor()
    for (const command of ['Stop…', 'Pause', 'Open Training Panel']) await offers(command, true)
    await long.locator('[data-action=stopNow]').click()
    await long.locator('header.run-header[data-state="stopped"]').waitFor()
    await palette('View: Close All Editors')
    await openFile('finetune.yaml')
    await palette('Unsloth: Fine-tune')
    const frame = await panel()
    await frame.locator('header.run-header[data-state="finished"]').waitFor()
    await palette('Notifications: Show Notifications')
    await page.locator('.notifications-center .notification-list-item').filter({ hasText: 'has finished' }).waitFor()
    await shot('finished')
    await palette('Notifications: Clear All Notifications')
    for (const [command, now] of [
      ['Stop…', false],
      ['Pause', false],
      ['Compare Runs', true],
      ['Delete Run', true],
    ] as const) {
      await offers(command, now)
    }
    const curve = frame.locator('[data-chart="loss"] .plot[aria-label*="lowest"]').first()
    const label = (await curve.getAttribute('aria-label')) ?? ''
    const [, last, , highest] = /: ([\d.]+) at .*lowest ([\d.]+), highest ([\d.]*\d)/.exec(label)?.map(Number) ?? []
    assert.ok(last !== undefined && highest !== undefined && last < 0.95 * highest, label)
  })

  it('looks right in dark, light and high contrast, and when narrow', async () => {
    await showViews()
    const row = page.locator('.monaco-list-row').filter({ hasText: 'stories260k' }).first()
    await row.waitFor()
    await page.waitForTimeout(500)
    await shot('panel-dark')
    await theme('Light Modern', 'vs')
    await shot('panel-light')
    await theme('Dark High Contrast', 'hc-black')
    await shot('panel-high-contrast')
    await theme('Dark Modern', 'vs-dark')
    await palette('View: Toggle Primary Side Bar Visibility')
    await page.setViewportSize({ width: 640, height: 800 })
    await page.waitForTimeout(800)
    await shot('panel-narrow')
    await page.setViewportSize({ width: 1500, height: 900 })
    await palette('View: Toggle Primary Side Bar Visibility')
  })

  it('lists models, data sets and runs', async () => {
    const expand = async (text: string): Promise<void> => {
      const row = page.locator('.monaco-list-row').filter({ hasText: text }).first()
      await row.waitFor()
      if ((await row.getAttribute('aria-expanded')) === 'false') await row.locator('.monaco-tl-twistie').click()
    }
    await showViews()
    for (const text of ['tiny', 'fables.jsonl']) {
      await expand(text)
    }
    await page.locator('.monaco-list-row').filter({ hasText: 'Architecture' }).first().waitFor()
    await page.waitForTimeout(300)
    await shot('trees')
  })

  it('shows data token by token', async () => {
    await palette('View: Close All Editors')
    await openFile('questions.finetune.yaml')
    await palette('Unsloth: Preview Data')
    const frame = await frameWith('.sample')
    await frame.locator('.sample').first().filter({ hasText: 'The fox, because he could not reach them.' }).waitFor()
    const trained = (await frame.locator('.sample').first().locator('.token.trained').allTextContents()).join('')
    assert.match(trained, /^\s*The fox, because he could not reach them\./)
    await page.waitForTimeout(300)
    await shot('preview')
  })

  it('offers no command that runs something in a workspace that is not trusted', async () => {
    const strict = await Host.start({ vsix: packed, trust: true })
    try {
      const folder = strict.makeFolder('strange')
      fillWorkspace(folder)
      const window = await strict.open(folder)
      await window.locator('.activitybar .action-label[aria-label="Unsloth"]').waitFor()
      for (const [command, now] of [
        ['New Recipe…', true],
        ['Preview Data', true],
        ['Fine-tune', false],
        ['Generate…', false],
        ['Doctor', false],
      ] as const) {
        await offers(command, now, window)
      }
    } finally {
      await strict.stop()
    }
  })
})
