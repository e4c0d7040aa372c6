/** Text from untrusted files, made safe and short for messages and terminals. */

/** Control, format and separator characters can move the cursor or reorder what is shown. */
const unsafe = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu

/** The text with every character that a terminal would interpret written as an escape. */
export function printable(text: string, limit = 200): string {
  const cut = text.length > limit ? `${text.slice(0, limit - 1)}…` : text
  return cut.replace(unsafe, (character) => `\\u${character.codePointAt(0)!.toString(16).padStart(4, '0')}`)
}

/** A name in double quotes, printable. */
export const quote = (name: string, limit = 120): string => `"${printable(name, limit)}"`
