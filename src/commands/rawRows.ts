import { open } from 'node:fs/promises'
import { UnslothError } from '#shared/errors.ts'
import { formatBytes, formatCount } from '#shared/units.ts'
import { loadRecipe } from '../../engine/recipe/loadRecipe.ts'
import { readError } from '../../engine/io/fileSystem.ts'
import { datasetFacts, rowsOfHead } from '../language/world/datasetFacts.ts'
import { table } from './reports.ts'

const shownRows = 10
const shownCharacters = 4_000
const headBytes = 1 << 20

/** The beginnings of a recipe's data files as Markdown: a bounded look, whatever their size. */
export async function recipeRows(recipeFile: string, folder: string): Promise<string> {
  const { recipe } = loadRecipe({ file: recipeFile, overrides: [], cwd: folder })
  const files = [...recipe.data.local_dataset, ...(recipe.data.dataset === null ? [] : [recipe.data.dataset])]
  if (files.length === 0) throw new UnslothError('DATA', `${recipeFile} names no data set.`, { hint: 'Set data.local_dataset.' })
  const parts = await Promise.all(files.slice(0, 8).map(fileRows))
  return `${parts.join('\n\n')}\n`
}

/** The beginning of one data file. */
export async function fileRows(path: string): Promise<string> {
  try {
    const { rows, exact, bytes, columns, format, problem } = await datasetFacts(path)
    const facts = [
      ['Rows', `${exact ? '' : 'about '}${formatCount(rows)}`],
      ['Size', formatBytes(bytes)],
      ['Columns', columns.join(', ')],
      ['Format', format ?? problem ?? 'not recognised'],
    ]
    return [`# ${path}`, table(['', ''], facts), ...(await firstRows(path)).map((row, at) => `## Row ${at + 1}\n\n${row}`)].join(
      '\n\n',
    )
  } catch (error) {
    throw UnslothError.is(error) ? error : readError(error, path, 'data set')
  }
}

async function firstRows(path: string): Promise<string[]> {
  const file = await open(path, 'r')
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(headBytes), 0, headBytes, 0)
    const { rows } = rowsOfHead(buffer.toString('utf8', 0, bytesRead), bytesRead < headBytes)
    return rows.slice(0, shownRows).map(rowText)
  } finally {
    await file.close()
  }
}

/** A row's columns one below the other, texts as they read. */
function rowText(row: Readonly<Record<string, unknown>>): string {
  return Object.entries(row)
    .map(([column, value]) => {
      const text = typeof value === 'string' ? value : JSON.stringify(value, null, 2)
      const cut =
        text.length > shownCharacters ? `${text.slice(0, shownCharacters)} … (${formatCount(text.length)} characters)` : text
      const fence = '`'.repeat(Math.max(3, ...[...cut.matchAll(/`+/g)].map(([run]) => run.length + 1)))
      return `**${column}**\n\n${fence}${typeof value === 'string' ? 'text' : 'json'}\n${cut}\n${fence}`
    })
    .join('\n\n')
}
