/** Colours and fonts that the canvas needs, as the editor's theme has them now. */
export interface Theme {
  readonly foreground: string
  readonly muted: string
  readonly grid: string
  readonly border: string
  readonly background: string
  readonly error: string
  readonly font: string
  readonly titleFont: string
  readonly highContrast: boolean
  /** Colours of runs, in order. */
  readonly runs: readonly string[]
  readonly evaluation: string
}

/** Runs beyond these begin again from the first colour, with another dash pattern. */
export const runColours = 6

/** Patterns that tell runs apart without colour. */
export const runDashes: readonly (readonly number[])[] = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 2], [1, 2]]

/** Reads the theme. Colours are looked up, never made up: what the theme lacks is the text colour. */
export function readTheme(): Theme {
  const style = getComputedStyle(document.body)
  const colour = (name: string): string => style.getPropertyValue(name).trim() || style.color
  const family = style.fontFamily
  const size = Math.max(10, Math.round(parseFloat(style.fontSize) * 0.85) || 11)
  return {
    foreground: style.color,
    muted: colour('--chart-axis'),
    grid: colour('--chart-grid'),
    border: colour('--page-border'),
    background: colour('--vscode-editor-background'),
    error: colour('--chart-error'),
    font: `${size}px ${family}`,
    titleFont: `600 ${size + 2}px ${family}`,
    highContrast: document.body.matches('.vscode-high-contrast, .vscode-high-contrast-light'),
    runs: Array.from({ length: runColours }, (_, i) => colour(`--run-${i}`)),
    evaluation: colour('--chart-evaluation'),
  }
}

/** Calls the listener when the editor has changed its theme, its font or its zoom. */
export function onThemeChange(listener: () => void): void {
  const observer = new MutationObserver(listener)
  // The editor puts the colours on the root element's style and the kind of theme on the body's class.
  observer.observe(document.documentElement, { attributes: true, attributeFilter: ['style', 'class'] })
  observer.observe(document.body, { attributes: true, attributeFilter: ['class', 'data-vscode-theme-id'] })
  matchMedia('(forced-colors: active)').addEventListener('change', listener)
}
