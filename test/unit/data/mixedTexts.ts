import type { Xoshiro128 } from '../../../engine/data/random.ts'

const words =
  "the of and model Once upon token don't I'LL we've gradient über naïve Straße здравствуй мир 你好 世界 日本語テスト 한국어 مرحبا שלום नमस्ते ไทย ελληνικά".split(
    ' ',
  )
const code = [
  'for (let i = 0; i < 10; i++) {\n\treturn a[i]**2;\n}',
  'def f(x):\n    return x + 1\n',
  '<div class="a">&amp;</div>',
  'SELECT * FROM t;',
  '0x1F',
  '1e-10',
  '3.14159',
  '12345678',
  '$$\\frac{a}{b}$$',
  '#include <x.h>',
]
const spaces = [
  ' ',
  '  ',
  '   ',
  '\n',
  '\n\n',
  '\r\n',
  '\t',
  '\t\t',
  ' \n',
  '\n ',
  '\u00a0',
  '\u3000',
  '\u2003',
  '\u200b',
  '\ufeff',
  '\u0085',
  '\u2028',
]
const emoji = ['🙂', '🦥', '👩‍👩‍👧‍👦', '🇩🇪', '👍🏽', '❤️', '☃', '🏴‍☠️']
const marks = [
  '.',
  ',',
  '!',
  '?',
  '…',
  '—',
  '"',
  "'",
  '«',
  '»',
  '(',
  ')',
  '[',
  ']',
  '{',
  '}',
  '<',
  '>',
  '|',
  '/',
  '\\',
  '@',
  '#',
  '_',
  '▁',
  'e\u0301',
  '\u0301',
  'ﬁ',
  'Å',
  '½',
  '①',
  '\0',
  '\u0007',
  '\u{10ffff}',
  '\ue000',
  '\ufffd',
]

/** A text of any kind by the random numbers: words of many scripts, code, white space, emoji, special tokens, any character. */
export function mixedText(random: Xoshiro128, special: readonly string[]): string {
  const pick = (from: readonly string[]): string => from[random.below(from.length)] ?? ''
  const anyCharacter = (): string => {
    const point = random.below(3) === 0 ? random.below(0x11_0000) : random.below(0x3000)
    return point >= 0xd800 && point < 0xe000 ? 'x' : String.fromCodePoint(point)
  }
  const parts: string[] = []
  for (let count = 1 + random.below(14); count > 0; count--) {
    const kind = random.below(20)
    parts.push(
      kind < 8
        ? pick(words)
        : kind < 12
          ? pick(spaces)
          : kind < 14
            ? pick(marks)
            : kind < 15
              ? pick(code)
              : kind < 16
                ? pick(emoji)
                : kind < 17
                  ? pick(special)
                  : kind < 18
                    ? anyCharacter()
                    : kind < 19
                      ? String(random.below(1e6))
                      : pick(words).repeat(1 + random.below(20)),
    )
    if (random.below(2) === 0) parts.push(' ')
  }
  return parts.join('')
}
