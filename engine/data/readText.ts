import { UnslothError } from '#shared/errors.ts'
import { chunksOf, textOf } from './fileChunks.ts'
import { dataError, rowLimit, utf8Hint, type SourceRow } from './row.ts'

/** A text or Markdown file as one row with the column `text`. */
export async function* readText(file: string): AsyncGenerator<SourceRow> {
  const pieces: string[] = []
  let length = 0
  let line = 1
  for await (const text of textOf(chunksOf(file), (error) =>
    dataError(file, line, 'not UTF-8 text here or in the lines that follow', utf8Hint, error),
  )) {
    pieces.push(text)
    length += text.length
    for (let at = text.indexOf('\n'); at >= 0; at = text.indexOf('\n', at + 1)) line++
    if (length > rowLimit)
      throw new UnslothError('DATA', `${file}: more than 256 MiB of text in one file.`, {
        hint: 'Cut it into several files, and name all of them.',
      })
  }
  const text = pieces.join('')
  if (text.trim() === '')
    throw new UnslothError('DATA', `${file}: the file is empty or contains only white space.`, { hint: 'Give a file with text.' })
  yield { file, line: 1, value: { text } }
}
