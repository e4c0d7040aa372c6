import assert from 'node:assert/strict'
import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { previewStrings, type FromPreview } from '#shared/previewPage.ts'
import { PreviewCache } from '../../engine/rpc/previewData.ts'
import { PreviewSession } from '../../src/preview/previewSession.ts'
import { collectProblems, editorSide, startPages, type Pages, type ThemeName } from './pages.ts'

const model = new URL('../../engine/starter/model', import.meta.url).pathname
const samples = 25

/** The page, a real session, and the engine's own answers. */
describe('preview of data in the browser', () => {
  let pages: Pages
  let page: Page
  let session: PreviewSession
  let data: string
  let recipe: string
  const problems: string[] = []
  const opened: string[] = []
  const asked: FromPreview[] = []
  const engine = new PreviewCache()
  let kept = ''

  before(async () => {
    pages = await startPages()
    kept = fs.mkdtempSync(join(tmpdir(), 'unsloth-preview-'))
    data = join(kept, 'train.jsonl')
    recipe = `model: ${model}\ndata:\n  local_dataset: ${data}\n  columns: { prompt: question, completion: answer }\ntraining:\n  max_seq_length: 256\n`
    const row = (at: number) => ({ question: `What says fox ${at}?\n`, answer: at === 7 ? 'I am '.repeat(300)
      : `I am fox number ${at}.` })
    fs.writeFileSync(data, Array.from({ length: samples }, (_, at) => JSON.stringify(row(at + 1))).join('\n'))
  })
  after(async () => {
    await pages.close()
    fs.rmSync(kept, { recursive: true })
  })

  const open = async (theme: ThemeName = 'dark', width = 900): Promise<void> => {
    page = await (await pages.browser.newContext({ viewport: { width, height: 900 } })).newPage()
    collectProblems(page, problems)
    session = new PreviewSession({
      title: 'train.jsonl', source: { file: data }, strings: previewStrings, log: (message) => problems.push(message),
      read: () => Promise.resolve({ recipe, path: join(kept, 'finetune.yaml') }),
      ask: (params, signal) => engine.preview(params, { signal }),
      post: (message) => page.evaluate((sent) => (globalThis as unknown as { deliver(message: unknown): void }).deliver(sent),
        message).catch(() => undefined),
      openRow: (file, line) => opened.push(`${file}:${line}`), openRecipe: () => opened.push('recipe'),
    })
    await page.exposeFunction('hostReceive', (message: FromPreview) => {
      asked.push(message)
      void session.handle(message)
    })
    await page.addInitScript(editorSide)
    await page.goto(`${pages.address}/?page=preview&theme=${theme}`)
    await page.locator('.sample').first().waitFor()
  }
  afterEach(async () => {
    session.dispose()
    await page.context().close()
    assert.deepEqual(problems.splice(0), [], 'errors of the console or breaches of the content security policy')
  })

  const shot = async (name: string): Promise<void> => {
    const folder = process.env.PANEL_SCREENSHOTS
    if (folder !== undefined) await page.screenshot({ path: join(folder, `${name}.png`), caret: 'initial' })
  }
  const range = (text: string): Promise<void> => page.locator('.range').filter({ hasText: text }).waitFor()

  for (const [theme, width] of [['dark', 900], ['light', 900], ['highContrast', 900], ['dark', 300]] as const) {
    it(`shows what is trained: ${theme}, ${width} pixels`, async () => {
      await open(theme, width)
      assert.equal(await page.locator('h1').innerText(), 'train.jsonl')
      assert.equal(await page.locator('.sample').count(), 10)
      const first = page.locator('.sample').first()
      const joined = (selector: string): Promise<string> =>
        first.locator(selector).allTextContents().then((texts) => texts.join(''))
      assert.match(await joined('.token.masked'), /What says fox 1\?\n$/)
      assert.match(await joined('.token.trained'), /^ I am fox number 1\.<\/s>$/)
      assert.deepEqual(await first.locator('.token.special').allTextContents(), ['<s>', '</s>'])
      const colours = await page.evaluate<string[]>(`['trained', 'masked'].map((kind) =>
        getComputedStyle(document.querySelector('.sample .token:not(.special).' + kind)).backgroundColor)`)
      assert.equal(colours[1], 'rgba(0, 0, 0, 0)')
      assert.match(colours[0]!, /0\.28/)
      assert.match(await page.locator('.facts').innerText(), new RegExp(`Samples\\s+${samples}`))
      assert.equal(await page.evaluate('document.documentElement.scrollWidth - document.documentElement.clientWidth'), 0,
        'nothing is wider than the window')
      const nameless = await page.evaluate(`[...document.querySelectorAll('vscode-button, vscode-dropdown, vscode-checkbox, input, button, [role=img]')]
        .filter((element) => !element.getAttribute('aria-label')
          && !element.textContent.trim()).map((element) => element.outerHTML)`)
      assert.deepEqual(nameless, [])
      await shot(`preview-${theme}-${width}`)
    })
  }

  it('tells the id of a token that is pointed at, or read by keys', async () => {
    await open()
    const token = page.locator('.sample').first().locator('.token.special').first()
    await token.hover()
    assert.equal(await page.locator('.tip').innerText(),
      `token 1, number 1 of ${await page.locator('.sample').first().locator('.token').count()} · only read · special`)
    await page.mouse.move(2, 2)
    await page.locator('.tip').waitFor({ state: 'hidden' })
    await page.locator('.tokens').first().focus()
    await page.keyboard.press('ArrowRight')
    await page.keyboard.press('ArrowRight')
    assert.match(await page.locator('[role=status]').innerText(), /token \d+, number 2 of \d+ · only read$/)
    assert.ok(await page.locator('.tip').isVisible())
  })

  it('turns pages, searches, filters and orders', async () => {
    await open()
    await range(`Samples 1–10 of ${samples}`)
    await page.keyboard.press('n')
    await range(`Samples 11–20 of ${samples}`)
    await page.locator('vscode-button[aria-label="Next samples"]').click()
    await range(`Samples 21–25 of ${samples}`)
    await page.locator('vscode-button[aria-label="Next samples"][disabled]').waitFor()
    await page.locator('input[type=search]').fill('fox number 13')
    await range('Samples 1–1 of 1')
    assert.match(await page.locator('.sample').innerText(), /Sample 13/)
    await page.locator('input[type=search]').fill('wolf')
    await range('No sample matches.')
    await page.locator('input[type=search]').fill('')
    await range(`of ${samples}`)
    await page.locator('vscode-dropdown[aria-label="Show"]').click()
    await page.locator('vscode-option[value="problems"]').click()
    await range('Samples 1–1 of 1')
    assert.match(await page.locator('.sample .notice').innerText(), /fills max_seq_length \(256 tokens\)/)
    // A window that is loaded again looks at the same.
    await page.reload()
    await range('Samples 1–1 of 1')
    await page.locator('vscode-dropdown[aria-label="Show"]').click()
    await page.locator('vscode-option[value="all"]').click()
    await page.locator('vscode-dropdown[aria-label="Order"]').click()
    await page.locator('vscode-option[value="longest"]').click()
    await page.locator('.sample h2').first().filter({ hasText: /^Sample 7$/ }).waitFor()
  })

  it('opens the row of a sample, and nothing that it was not told of', async () => {
    await open()
    await page.locator('.sample .link').nth(1).click()
    await page.waitForTimeout(50)
    assert.deepEqual(opened.splice(0), [`${data}:2`])
    await session.handle({ type: 'open', file: '/etc/passwd', line: 1 })
    assert.deepEqual(opened, [])
  })

  it('shows what is wrong with recipe or data, and what is right when it has been mended', async () => {
    await open()
    const good = recipe
    recipe = recipe.replace('max_seq_length: 256', 'max_seq_length: 0')
    session.changed()
    await page.locator('.notice.error').filter({ hasText: 'max_seq_length' }).waitFor()
    assert.equal(await page.locator('.sample').count(), 0)
    recipe = good
    session.changed()
    await range(`of ${samples}`)
    assert.equal(await page.locator('.notice.error').count(), 0)
  })

  it('moves a window over files of many rows', async () => {
    const whole = fs.readFileSync(data)
    fs.writeFileSync(data, Array.from({ length: 4500 },
      (_, at) => JSON.stringify({ question: `q${at + 1} `, answer: 'a' })).join('\n'))
    try {
      await open()
      await range('of 2,000')
      await page.locator('.window').filter({ hasText: 'Rows 1–2,000' }).waitFor()
      await page.locator('vscode-button[aria-label="Later rows"]').click()
      await page.locator('.window').filter({ hasText: 'Rows 2,001–4,000' }).waitFor()
      await page.locator('vscode-button[aria-label="Later rows"]').click()
      await page.locator('.window').filter({ hasText: 'Rows 4,001–4,500' }).waitFor()
      await page.locator('.sample').first().filter({ hasText: 'q4001' }).waitFor()
      await page.locator('vscode-button[aria-label="Later rows"][disabled]').waitFor()
    } finally {
      fs.writeFileSync(data, whole)
    }
  })
})
