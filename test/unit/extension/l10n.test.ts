import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { l10nBundle } from '../../../tools/l10n.mjs'

describe('texts for translators', () => {
  it('are those of the sources (npm run docs writes them)', async () => {
    const written = JSON.parse(readFileSync(new URL('../../../l10n/bundle.l10n.json', import.meta.url), 'utf8')) as object
    const current = JSON.parse(await l10nBundle()) as object
    assert.ok(Object.keys(current).length > 150)
    assert.deepEqual(written, current)
  })
})
