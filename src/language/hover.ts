import type { Hover, Position } from 'vscode-languageserver'
import { isSection, sectionDocs } from '#shared/recipe.ts'
import { formatBytes, formatCompact, formatCount } from '#shared/units.ts'
import { markdown } from './completionItems.ts'
import { fieldMarkdown, yamlValue } from './fieldText.ts'
import { Outline, type Entry } from './outline.ts'
import type { SourceText, Span } from './text.ts'
import { t } from './texts.ts'
import type { Workspace } from './workspace.ts'

const inside = ({ start, end }: Span, offset: number): boolean => offset >= start && offset <= end

/** What stands under a position: a key, a value of a closed set, a model, a data set. */
export async function hover(source: SourceText, position: Position, workspace: Workspace): Promise<Hover | null> {
  const outline = new Outline(source)
  const offset = source.offset(position)
  const entry = outline.at(offset)
  if (entry === undefined) return null
  if (inside(entry.keySpan, offset)) return keyHover(outline, entry)
  const item = entry.items.find(({ span }) => inside(span, offset))
  const text = item?.value ?? entry.value
  if (entry.field === undefined || text === '') return null
  const said = await valueText(entry, text, workspace)
  return said === undefined ? null : { contents: markdown(said), range: source.range(item?.span ?? entry.valueSpan) }
}

function keyHover({ source }: Outline, entry: Entry): Hover | null {
  const range = source.range(entry.keySpan)
  if (entry.field !== undefined) {
    const { field, key } = entry
    const alias = key === field.key || key === 'model' ? '' : `${t('`{0}` is another name of `{1}`.', key, field.key)}\n\n`
    return { contents: markdown(alias + fieldMarkdown(field)), range }
  }
  if (entry.parent !== undefined) return null
  if (entry.key === 'version') return { contents: markdown(t('Version of the recipe format. There is one: `1`.')), range }
  return isSection(entry.key) ? { contents: markdown(`**${entry.key}**\n\n${t(sectionDocs[entry.key])}`), range } : null
}

async function valueText({ field }: Entry, text: string, workspace: Workspace): Promise<string | undefined> {
  const { meta, path } = field!
  if (meta.path === 'model') return modelText(text, workspace)
  if (meta.path === 'dataset') return datasetText(text, workspace)
  const doc = meta.values?.[text] ?? meta.values?.[text.toLowerCase()]
  if (doc !== undefined) {
    const missing =
      meta.availability?.applies(meta.kind === 'list' ? [text] : text) === true
        ? `\n\n**${t('Availability')}:** ${t(meta.availability.note)}.`
        : ''
    return `\`${text}\`: ${t(doc)}${missing}`
  }
  if (meta.series !== undefined && new RegExp(meta.series.pattern, 'i').test(text))
    return deviceText(text, t(meta.series.doc), workspace)
  const synonym = meta.synonyms?.[text.toLowerCase()]
  if (synonym !== undefined) return t('`{0}` is another spelling of `{1}`.', text, yamlValue(synonym))
  return path === 'lora.target_modules' || path === 'lora.modules_to_save' ? undefined : fieldMarkdown(field!)
}

async function deviceText(name: string, doc: string, workspace: Workspace): Promise<string> {
  const device = (await workspace.devices()).find(({ id }) => id === name.toLowerCase())
  const memory = device?.totalBytes === undefined ? '' : `, ${formatBytes(device.totalBytes)}`
  return `\`${name}\`: ${doc}${device === undefined ? '' : ` (${device.label}${memory})`}`
}

async function modelText(name: string, workspace: Workspace): Promise<string> {
  const facts = await workspace.model(name)
  if (!facts.ok) return `**${name}**\n\n${facts.problem}.`
  const { architecture, parameters, layers, hidden, context, vocabulary, targetModules } = facts.value
  return [
    `**${name}** — ${architecture}`,
    [
      [t('Parameters'), formatCompact(parameters)],
      [t('Layers'), `${layers} × ${formatCount(hidden)}`],
      [t('Context'), t('{0} tokens', formatCount(context))],
      [t('Vocabulary'), formatCount(vocabulary)],
    ]
      .map(([label, value]) => `- ${label}: ${value}`)
      .join('\n'),
    t('Layers for adapters: {0}', targetModules.map((module) => `\`${module}\``).join(', ')),
  ].join('\n\n')
}

async function datasetText(name: string, workspace: Workspace): Promise<string> {
  const facts = await workspace.dataset(name)
  if (!facts.ok) return `**${name}**\n\n${facts.problem}.`
  const { bytes, rows, exact, columns, format, problem } = facts.value
  if (columns.length === 0 && problem === undefined) return `**${name}** — ${formatBytes(bytes)}`
  return [
    `**${name}** — ${formatBytes(bytes)}, ${exact ? t('{0} rows', formatCount(rows)) : t('about {0} rows', formatCount(rows))}`,
    t(
      'Columns: {0}',
      columns.length === 0
        ? t('none found')
        : columns
            .slice(0, 30)
            .map((column) => `\`${column}\``)
            .join(', '),
    ),
    t('Format: {0}', format === undefined ? (problem ?? t('unknown')) : `\`${format}\``),
  ].join('\n\n')
}
