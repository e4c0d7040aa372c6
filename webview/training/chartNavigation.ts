import type uPlot from 'uplot'
import type { Range } from '#shared/panelProtocol.ts'
import { moved, zoomed } from './zoom.ts'

export interface NavigationTarget {
  readonly shared: { readonly range: Range; readonly extent: Range; readonly zoom: (range: Range | null) => void }
  readonly plotter: () => uPlot | undefined
  /** Reads the values at an index of the data aloud. */
  readonly read: (index: number) => void
}

/** Wheel and keys of a chart. Dragging and double click are the plotter's. */
export function bindNavigation(element: HTMLElement, { shared, plotter, read }: NavigationTarget): void {
  element.addEventListener(
    'wheel',
    (event) => {
      const plot = plotter()
      if (plot === undefined) return
      const zooms = event.ctrlKey || event.metaKey
      const sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)
      // A plain wheel scrolls the page.
      if (!zooms && !sideways) return
      event.preventDefault()
      const { left, width } = plot.over.getBoundingClientRect()
      if (zooms) {
        const around = plot.posToVal(Math.min(Math.max(event.clientX - left, 0), width), 'x')
        const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? event.deltaY * 16 : event.deltaY
        shared.zoom(zoomed(shared.range, shared.extent, around, Math.exp(Math.min(Math.max(lines, -200), 200) / 300)))
      } else shared.zoom(moved(shared.range, shared.extent, (event.deltaX || event.deltaY) / Math.max(width, 1)))
    },
    { passive: false },
  )

  element.addEventListener('keydown', (event) => {
    const plot = plotter()
    if (plot === undefined || event.ctrlKey || event.metaKey || event.altKey) return
    const middle = (shared.range.min + shared.range.max) / 2
    switch (event.key) {
      case 'ArrowLeft':
      case 'ArrowRight': {
        const direction = event.key === 'ArrowLeft' ? -1 : 1
        if (event.shiftKey) shared.zoom(moved(shared.range, shared.extent, direction / 4))
        else moveCrosshair(plot, direction, read)
        break
      }
      case '+':
      case '=':
        shared.zoom(zoomed(shared.range, shared.extent, middle, 0.5))
        break
      case '-':
        shared.zoom(zoomed(shared.range, shared.extent, middle, 2))
        break
      case '0':
      case 'Escape':
        shared.zoom(null)
        break
      default:
        return
    }
    event.preventDefault()
  })

  element.addEventListener('blur', () => plotter()?.setCursor({ left: -10, top: -10 }))
}

/** To the next point in view, or to the last one when there is no crosshair yet. */
function moveCrosshair(plot: uPlot, direction: number, read: (index: number) => void): void {
  const x = plot.data[0]
  const { idx, left } = plot.cursor
  const shown = left !== undefined && left >= 0 && idx !== null && idx !== undefined
  const [first, last] = [plot.valToIdx(plot.scales.x!.min!), plot.valToIdx(plot.scales.x!.max!)]
  // A keyboard step is at least a pixel: with thousands of points in view, one key press must be seen.
  let next = shown ? idx + direction : last
  while (shown && next > first && next < last && Math.abs(plot.valToPos(x[next]!, 'x') - left) < 1) next += direction
  next = Math.min(Math.max(next, first), last)
  plot.setCursor({ left: plot.valToPos(x[next]!, 'x'), top: plot.over.clientHeight / 2 })
  read(next)
}
