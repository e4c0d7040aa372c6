import type { Chart } from './chart.ts'
import type { ShownRun } from './panelModel.ts'
import type { Theme } from './theme.ts'

/** Pixels of the page between charts. */
const gap = 16
const titleHeight = 28
const columns = 2

/** All charts that have curves on one picture, in the theme's colours, with the runs' names. */
export async function chartsAsPng(
  charts: readonly Chart[],
  runs: readonly ShownRun[],
  theme: Theme,
): Promise<Uint8Array | undefined> {
  const drawn = charts.flatMap(({ spec: { title, wide = false }, plotter }) =>
    plotter === undefined ? [] : [{ title, wide, canvas: plotter.ctx.canvas }],
  )
  if (drawn.length === 0) return undefined
  const ratio = devicePixelRatio
  const cellWidth = Math.max(...drawn.map(({ canvas, wide }) => (wide ? (canvas.width - gap * ratio) / columns : canvas.width)))
  const places: { x: number; y: number }[] = []
  let [column, y, rowHeight] = [0, 2 * titleHeight * ratio, 0]
  for (const { canvas } of drawn) {
    const span = canvas.width > cellWidth * 1.5 ? columns : 1
    if (column + span > columns) {
      y += rowHeight
      column = rowHeight = 0
    }
    places.push({ x: gap * ratio + column * (cellWidth + gap * ratio), y })
    rowHeight = Math.max(rowHeight, canvas.height + (titleHeight + gap) * ratio)
    column += span
  }
  const page = document.createElement('canvas')
  page.width = Math.ceil(columns * cellWidth + (columns + 1) * gap * ratio)
  page.height = Math.ceil(y + rowHeight)
  const ctx = page.getContext('2d')!
  ctx.fillStyle = theme.background
  ctx.fillRect(0, 0, page.width, page.height)
  ctx.scale(ratio, ratio)
  ctx.font = theme.titleFont
  let x = gap
  runs.forEach(({ info }, place) => {
    ctx.fillStyle = runs.length > 1 ? theme.runs[place % theme.runs.length]! : theme.foreground
    ctx.fillText(info.name, x, titleHeight)
    x += ctx.measureText(info.name).width + 2 * gap
  })
  ctx.fillStyle = theme.foreground
  drawn.forEach(({ title }, i) => ctx.fillText(title, places[i]!.x / ratio, places[i]!.y / ratio + titleHeight * 0.65))
  ctx.setTransform(1, 0, 0, 1, 0, 0)
  drawn.forEach(({ canvas }, i) => ctx.drawImage(canvas, places[i]!.x, places[i]!.y + titleHeight * ratio))
  const blob = await new Promise<Blob | null>((resolve) => page.toBlob(resolve, 'image/png'))
  return blob === null ? undefined : new Uint8Array(await blob.arrayBuffer())
}
