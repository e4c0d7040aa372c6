import assert from 'node:assert/strict'
import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { previewStrings, type FromPreview } from '#shared/previewPage.ts'
import { PreviewCache } from '../../engine/rpc/previewData.ts'
import { PreviewSession } from '../../src/preview/previewSession.ts'
import { collectProblems, editorSide, patience, soon, startPages, type Pages, type ThemeName } from './pages.ts'

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
    const row = (at: number) => ({
      question: `What says fox ${at}?\n`,
      answer: at === 7 ? 'I am '.repeat(300) : `I am fox number ${at}.`,
    })
    fs.writeFileSync(data, Array.from({ length: samples }, (_, at) => JSON.stringify(row(at + 1))).join('\n'))
  })
  after(async () => {
    await pages.close()
    fs.rmSync(kept, { recursive: true })
  })

  const open = async (theme: ThemeName = 'dark', width = 900): Promise<void> => {
    const context = await pages.browser.newContext({ viewport: { width, height: 900 } })
    context.setDefaultTimeout(patience)
    page = await context.newPage()
    collectProblems(page, problems)
    session = new PreviewSession({
      title: 'train.jsonl',
      source: { file: data },
      strings: previewStrings,
      log: (message) => problems.push(message),
      read: () => Promise.resolve({ recipe, path: join(kept, 'finetune.yaml') }),
      ask: (params, signal) => engine.preview(params, { signal }),
      post: (message) =>
        page
          .evaluate((sent) => (globalThis as unknown as { deliver(message: unknown): void }).deliver(sent), message)
          .catch(() => undefined),
      openRow: (file, line) => opened.push(`${file}:${line}`),
      openRecipe: () => opened.push('recipe'),
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

  for (const [theme, width] of [
    ['dark', 900],
    ['light', 900],
    ['highContrast', 900],
    ['dark', 300],
  ] as const) {
    it(`shows what is trained: ${theme}, ${width} pixels`, async () => {
      await open(theme, width)
      await soon(async () => {
        assert.equal(await page.locator('h1').innerText(), 'train.jsonl')
        assert.equal(await page.locator('.sample').count(), 10)
        assert.match(await page.locator('.facts').innerText(), new RegExp(`Samples\\s+${samples}`))
      })
      const first = page.locator('.sample').first()
      const joined = (selector: string): Promise<string> =>
        first
          .locator(selector)
          .allTextContents()
          .then((texts) => texts.join(''))
      assert.match(await joined('.token.masked'), /What says fox 1\?\n$/)
      assert.match(await joined('.token.trained'), /^ I am fox number 1\.<\/s>$/)
      assert.deepEqual(await first.locator('.token.special').allTextContents(), ['<s>', '</s>'])
      const colours = await page.evaluate<string[]>(`['trained', 'masked'].map((kind) =>
        getComputedStyle(document.querySelector('.sample .token:not(.special).' + kind)).backgroundColor)`)
      assert.equal(colours[1], 'rgba(0, 0, 0, 0)')
      assert.match(colours[0]!, /0\.28/)
      assert.equal(
        await page.evaluate('document.documentElement.scrollWidth - document.documentElement.clientWidth'),
        0,
        'nothing is wider than the window',
      )
      const nameless =
        await page.evaluate(`[...document.querySelectorAll('vscode-button, vscode-dropdown, vscode-checkbox, input, button, [role=img]')]
        .filter((element) => !element.getAttribute('aria-label')
          && !element.textContent.trim()).map((element) => element.outerHTML)`)
      assert.deepEqual(nameless, [])
      await shot(`preview-${theme}-${width}`)
    })
  }

  it('tells the id of a token that is pointed at, or read by keys', async () => {
    await open()
    const token = page.locator('.sample').first().locator('.token.special').first()
    const tip = page.locator('.tip')
    const tokens = await page.locator('.sample').first().locator('.token').count()
    await token.hover()
    await tip.filter({ hasText: `token 1, number 1 of ${tokens} · only read · special` }).waitFor()
    await page.mouse.move(2, 2)
    await tip.waitFor({ state: 'hidden' })
    await page.locator('.tokens').first().focus()
    await page.keyboard.press('ArrowRight')
    await page.keyboard.press('ArrowRight')
    const second = new RegExp(`token \\d+, number 2 of ${tokens} · only read$`)
    await page.locator('[role=status]').filter({ hasText: second }).waitFor({ state: 'attached' })
    await tip.filter({ hasText: second }).waitFor()
    // Reading on moves the page, and the words go with their token.
    const last = page.locator('.tokens').nth(9)
    await last.focus()
    await page.keyboard.press('ArrowRight')
    await soon(async () => {
      const [words, place] = [await tip.boundingBox(), await last.locator('.token.current').boundingBox()]
      assert.ok(words !== null && place !== null && place.y > 0 && place.y < 900)
      assert.ok(
        Math.abs(words.y - (place.y + place.height)) < 8 || Math.abs(words.y + words.height - place.y) < 8,
        `words at ${words.y}, token at ${place.y}`,
      )
    })
    assert.notEqual(await page.evaluate('scrollY'), 0)
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
    await page
      .locator('.sample h2')
      .filter({ hasText: /^Sample 13$/ })
      .waitFor()
    await page.locator('input[type=search]').fill('wolf')
    await range('No sample matches.')
    await page.locator('input[type=search]').fill('')
    await range(`of ${samples}`)
    await page.locator('vscode-dropdown[aria-label="Show"]').click()
    await page.locator('vscode-option[value="problems"]').click()
    await range('Samples 1–1 of 1')
    await page.locator('.sample .notice').filter({ hasText: 'fills max_seq_length (256 tokens)' }).waitFor()
    // A window that is loaded again looks at the same.
    await page.reload()
    await range('Samples 1–1 of 1')
    await page.locator('vscode-dropdown[aria-label="Show"]').click()
    await page.locator('vscode-option[value="all"]').click()
    await page.locator('vscode-dropdown[aria-label="Order"]').click()
    await page.locator('vscode-option[value="longest"]').click()
    await page
      .locator('.sample h2')
      .first()
      .filter({ hasText: /^Sample 7$/ })
      .waitFor()
  })

  it('opens the row of a sample, and nothing that it was not told of', async () => {
    await open()
    await page.locator('.sample .link').nth(1).click()
    await soon(() => assert.deepEqual(opened, [`${data}:2`]))
    opened.length = 0
    await session.handle({ type: 'open', file: '/etc/passwd', line: 1 })
    assert.deepEqual(opened, [])
  })

  it('shows what is wrong with recipe or data, and what is right when it has been mended', async () => {
    await open()
    const good = recipe
    recipe = recipe.replace('max_seq_length: 256', 'max_seq_length: 0')
    session.changed()
    await page.locator('.notice.error').filter({ hasText: 'max_seq_length' }).waitFor()
    await soon(async () => assert.equal(await page.locator('.sample').count(), 0))
    recipe = good
    session.changed()
    await range(`of ${samples}`)
    await page.locator('.notice.error').waitFor({ state: 'detached' })
  })

  it('moves a window over files of many rows', async () => {
    const whole = fs.readFileSync(data)
    fs.writeFileSync(
      data,
      Array.from({ length: 4500 }, (_, at) => JSON.stringify({ question: `q${at + 1} `, answer: 'a' })).join('\n'),
    )
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
