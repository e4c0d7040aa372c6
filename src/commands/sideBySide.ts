/** Breaks text into lines of at most `width` characters, at spaces where there are some; line breaks of the text stay. */
export function wrap(text: string, width: number): string[] {
  return text
    .replaceAll('\r\n', '\n')
    .replaceAll('\t', '    ')
    .split('\n')
    .flatMap((paragraph) => {
      const lines: string[] = []
      let line: string[] = []
      for (const word of splitWords([...paragraph], width)) {
        if (line.length + word.length > width) {
          lines.push(line.join('').trimEnd())
          line =
            word[0] === ' '
              ? word.slice(word.findIndex((char) => char !== ' ') < 0 ? word.length : word.findIndex((char) => char !== ' '))
              : word
        } else line = [...line, ...word]
      }
      return [...lines, line.join('').trimEnd()]
    })
}

/** Words with the spaces before them; what is longer than a line is cut. Characters are code points. */
function splitWords(characters: readonly string[], width: number): string[][] {
  const words: string[][] = []
  let word: string[] = []
  for (const char of characters) {
    const begins = char === ' ' && word.length > 0 && word.at(-1) !== ' '
    if (begins || word.length >= width) {
      words.push(word)
      word = []
    }
    word.push(char)
  }
  return word.length > 0 ? [...words, word] : words
}

/** Two texts under their titles, in columns of `width` characters. */
export function sideBySide(
  left: { readonly title: string; readonly text: string },
  right: { readonly title: string; readonly text: string },
  width = 58,
): string {
  const columns = [left, right].map(({ title, text }) => [title, '─'.repeat(width), ...wrap(text, width)])
  const pad = (line: string): string => line + ' '.repeat(Math.max(0, width - [...line].length))
  const height = Math.max(...columns.map(({ length }) => length))
  return Array.from({ length: height }, (_, at) => `${pad(columns[0]![at] ?? '')} │ ${columns[1]![at] ?? ''}`.trimEnd()).join(
    '\n',
  )
}
