import type { DoctorResult, InspectResult, MemoryPart, PlanResult, VerifyResult } from '#shared/protocol.ts'
import { formatBytes, formatCompact, formatCount } from '#shared/units.ts'
import type { RecipePlan } from '../language/workspace.ts'

/** Reports as Markdown: readable as they are, and rendered by the preview. */

const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll(/\s*\n\s*/g, ' ')

/** A table whose columns line up also as plain text. */
export function table(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  right: ReadonlySet<number> = new Set(),
): string {
  const cells = [head, ...rows].map((row) => row.map(cell))
  const widths = head.map((_, at) => Math.max(3, ...cells.map((row) => row[at]?.length ?? 0)))
  const line = (row: readonly string[]): string =>
    `| ${widths.map((width, at) => (right.has(at) ? (row[at] ?? '').padStart(width) : (row[at] ?? '').padEnd(width))).join(' | ')} |`
  const rule = `|${widths.map((width, at) => (right.has(at) ? `${'-'.repeat(width + 1)}:` : '-'.repeat(width + 2))).join('|')}|`
  return [line(cells[0]!), rule, ...cells.slice(1).map(line)].join('\n')
}

export function planReport(recipe: string, { diagnostics, resolved, summary }: PlanResult): string {
  const parts = [`# Plan of ${recipe}`]
  if (diagnostics.length > 0) {
    parts.push(
      diagnostics
        .map(({ severity, line, message }) => `- **${severity}**${line === undefined ? '' : ` in line ${line}`}: ${message}`)
        .join('\n'),
    )
  }
  if (summary !== undefined) {
    const { model, steps, memory, device, patches } = summary
    parts.push(
      table(
        ['', ''],
        [
          [
            'Model',
            `${model.architecture}, ${model.layers} layers, width ${formatCount(model.hiddenSize)}, context ${formatCount(model.contextLength)}`,
          ],
          ['Parameters', formatCompact(model.parameters)],
          [
            'Trained',
            `${formatCompact(model.trainableParameters)} (${((100 * model.trainableParameters) / model.parameters).toPrecision(2)} %)`,
          ],
          ['Samples', formatCount(steps.samples)],
          [
            'Steps',
            `${formatCount(steps.total)} (${Number(steps.epochs.toFixed(2))} epochs, ${formatCount(steps.effectiveBatch)} samples each)`,
          ],
          ['Device', device],
        ],
      ),
    )
    const share = ({ bytes, place }: MemoryPart): string =>
      place === 'host' ? 'on the host' : `${((100 * bytes) / memory.totalBytes).toFixed(0)} %`
    parts.push(
      '## Memory',
      table(
        ['Part', 'Size', 'Share'],
        [
          ...memory.parts.map((part) => [part.name, formatBytes(part.bytes), share(part)]),
          [
            '**total**',
            `**${formatBytes(memory.totalBytes)}**`,
            memory.availableBytes === undefined ? '' : `of ${formatBytes(memory.availableBytes)} free`,
          ],
        ],
        new Set([1, 2]),
      ),
    )
    if (patches.length > 0) parts.push('## Patches', patches.map((patch) => `- ${patch}`).join('\n'))
  }
  if (resolved !== undefined) parts.push('## The recipe with every default', `\`\`\`yaml\n${resolved.trimEnd()}\n\`\`\``)
  return `${parts.join('\n\n')}\n`
}

/** Where the memory goes, as the language server planned it without an engine. */
export function memoryReport(recipe: string, { totalBytes, parts, summary, freeBytes, deviceBytes }: RecipePlan): string {
  const share = ({ bytes, place }: MemoryPart): string =>
    place === 'host' ? 'on the host' : `${((100 * bytes) / totalBytes).toFixed(0)} %`
  const room =
    freeBytes === undefined
      ? ''
      : `${formatBytes(freeBytes)} free${deviceBytes === undefined ? '' : ` of ${formatBytes(deviceBytes)}`}`
  return `${[
    `# Memory of ${recipe}`,
    summary,
    table(
      ['Part', 'Size', 'Share'],
      [
        ...parts.map((part) => [part.name, formatBytes(part.bytes), share(part)]),
        ['**total**', `**${formatBytes(totalBytes)}**`, room],
      ],
      new Set([1, 2]),
    ),
  ].join('\n\n')}\n`
}

export function inspectReport({ path, kind, facts, bytes, parameters, tensorCount, tensors, metadata }: InspectResult): string {
  const rows = [
    ...facts.map(({ label, value }) => [label, value]),
    ['Parameters', `${formatCompact(parameters)} (${formatCount(parameters)})`],
    ['Size', formatBytes(bytes)],
  ]
  const parts = [
    `# ${path}`,
    kind === 'adapter' ? 'A LoRA adapter.' : kind === 'model' ? 'A model.' : 'A safetensors file.',
    table(['', ''], rows),
  ]
  const entries = Object.entries(metadata)
  if (entries.length > 0) parts.push('## Metadata', table(['Key', 'Value'], entries))
  const more = tensorCount > tensors.length ? `, the first ${formatCount(tensors.length)}` : ''
  parts.push(
    `## Tensors (${formatCount(tensorCount)}${more})`,
    table(
      ['Name', 'Type', 'Shape', 'Size'],
      tensors.map(({ name, dtype, shape, bytes: size }) => [name, dtype, shape.join(' × '), formatBytes(size)]),
      new Set([3]),
    ),
  )
  return `${parts.join('\n\n')}\n`
}

export function verifyReport(folder: string, { passed, rows }: VerifyResult): string {
  return `${[
    `# Verification of ${folder}`,
    passed ? '**Passed**: the engine computes what the reference did.' : '**Failed**: see below.',
    table(
      ['Quantity', 'Relative error', 'Tolerance', ''],
      rows.map(({ quantity, relativeError, tolerance, passed: fine, note }) => [
        quantity,
        relativeError === null ? '–' : relativeError.toExponential(1),
        tolerance.toExponential(0),
        `${fine ? '✓' : '✗'}${note === undefined ? '' : ` ${note}`}`,
      ]),
      new Set([1, 2]),
    ),
  ].join('\n\n')}\n`
}

const levels = { ok: '✓', info: 'i', warning: '!', error: '✗' } as const

export function doctorReport({ checks }: DoctorResult, editor: readonly (readonly [string, string])[]): string {
  const advice = checks.filter(({ hint }) => hint !== undefined)
  return `${[
    '# What this machine can do',
    table(
      ['', 'Check', 'Result'],
      checks.map(({ level, name, detail }) => [levels[level], name, detail]),
    ),
    ...(advice.length === 0 ? [] : ['## What to do', advice.map(({ name, hint }) => `- **${name}**: ${hint}`).join('\n')]),
    '## Editor',
    table(['', ''], editor),
  ].join('\n\n')}\n`
}
