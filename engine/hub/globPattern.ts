/** A piece of a pattern: a text, one character of a kind, or a run of any length. */
type Piece =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'one'; readonly fits: (character: string) => boolean }
  /** `*` within a folder, `**` through folders, `**` with a slash through any number of whole folders. */
  | { readonly kind: 'run' | 'deep' | 'folders' }

function classOf(inner: string): (character: string) => boolean {
  const negated = inner.startsWith('!') || inner.startsWith('^')
  const ranges = [...(negated ? inner.slice(1) : inner).matchAll(/([^])-([^])|([^])/g)].map(
    ([, from, to, single]) => [from ?? single!, to ?? single!] as const,
  )
  return (character) => character !== '/' && ranges.some(([from, to]) => character >= from && character <= to) !== negated
}

function piecesOf(pattern: string): Piece[] {
  const pieces = pattern.match(/\*\*\/|\*{2,}|\*|\?|\[[!^]?[^\]]+\]|[^*?[]+|\[/g) ?? []
  return pieces.map((piece): Piece => {
    if (piece === '**/') return { kind: 'folders' }
    if (piece.startsWith('**')) return { kind: 'deep' }
    if (piece === '*') return { kind: 'run' }
    if (piece === '?') return { kind: 'one', fits: (character) => character !== '/' }
    return piece.length > 1 && piece.startsWith('[')
      ? { kind: 'one', fits: classOf(piece.slice(1, -1)) }
      : { kind: 'text', text: piece }
  })
}

/** Ends of the beginnings of `path` that a piece can reach from the ends in `from`; time in proportion to the path. */
function advance(piece: Piece, path: string, from: ReadonlySet<number>): Set<number> {
  const reached = new Set<number>()
  if (piece.kind === 'text') {
    for (const at of from) if (path.startsWith(piece.text, at)) reached.add(at + piece.text.length)
  } else if (piece.kind === 'one') {
    for (const at of from) if (at < path.length && piece.fits(path[at]!)) reached.add(at + 1)
  } else {
    let open = false
    for (let at = 0; at <= path.length; at++) {
      if (from.has(at)) open = true
      else if (piece.kind === 'run' && at > 0 && path[at - 1] === '/') open = false
      if (open && (piece.kind !== 'folders' || from.has(at) || path[at - 1] === '/')) reached.add(at)
    }
  }
  return reached
}

/**
 * Whether a pattern of a data set's card names a path: `*` within a folder, `**` through folders, `?`, `[…]`; a plain path names
 * itself or, when it is a folder, all in it. Takes time in proportion to both, whatever an unknown card says.
 */
export function matchesGlob(pattern: string, path: string): boolean {
  if (!/[*?[]/.test(pattern)) return path === pattern || path.startsWith(`${pattern.replace(/\/+$/, '')}/`)
  const ends = piecesOf(pattern).reduce<ReadonlySet<number>>(
    (from, piece) => (from.size === 0 ? from : advance(piece, path, from)),
    new Set([0]),
  )
  return ends.has(path.length)
}
