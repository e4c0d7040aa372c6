import type { CompletionItem } from 'vscode-languageserver'
import { defaultTargetModules } from '#shared/recipe.ts'
import { formatBytes, formatCount } from '#shared/units.ts'
import { itemKind, order } from './completionItems.ts'
import type { ValueCursor } from './cursor.ts'
import { quoteIfNeeded, yamlValue } from './fieldText.ts'
import type { Outline } from './outline.ts'
import type { FoundDevice, Workspace } from './workspace.ts'

/** A value on offer. */
interface Offer {
  readonly value: string
  readonly detail?: string
  readonly doc?: string
  readonly kind?: CompletionItem['kind']
  /** Written as it is: not a text that may need quotes. */
  readonly literal?: boolean
  /** Comes first. */
  readonly best?: boolean
}

const gguf: readonly (readonly [string, string])[] = [
  ['q8_0', '8 bits: nearly as good as 16 bits'],
  ['q6_k', '6 bits'],
  ['q5_k_m', '5 bits, mixed'],
  ['q4_k_m', '4 bits, mixed: the usual choice'],
  ['q3_k_m', '3 bits, mixed'],
  ['q2_k', '2 bits: for very large models only'],
  ['f16', '16 bits'],
  ['bf16', '16 bits with the range of float32'],
]

/** Values for a key: those of the schema, and those found in the world. */
export async function valueCompletions(outline: Outline, cursor: ValueCursor, workspace: Workspace): Promise<CompletionItem[]> {
  const { source } = outline
  const { field } = cursor
  const offers = await offersFor(outline, cursor, workspace)
  const others = new Set(cursor.others)
  const wide = offers.filter(({ value }) => !others.has(value))
  const separate = field.path === 'lora.target_modules' && cursor.item === undefined && cursor.quote === undefined
  return wide.map((offer, index): CompletionItem => {
    const bare = cursor.quote !== undefined || offer.literal === true
    const written =
      cursor.quote === '"'
        ? JSON.stringify(offer.value).slice(1, -1)
        : cursor.quote === "'"
          ? offer.value.replaceAll("'", "''")
          : bare
            ? offer.value
            : quoteIfNeeded(offer.value)
    const prefix = cursor.needsDash ? '- ' : cursor.needsSpace ? ' ' : ''
    return {
      label: offer.value,
      kind: offer.kind ?? itemKind.value,
      sortText: `${offer.best === true ? '0' : '1'}${order(index)}`,
      textEdit: source.edit(cursor.word, prefix + written),
      filterText: prefix + written,
      ...(offer.detail === undefined ? {} : { detail: offer.detail }),
      ...(offer.doc === undefined ? {} : { documentation: { kind: 'markdown', value: offer.doc } }),
      ...(offer.best === true && !separate ? { preselect: true } : {}),
    }
  })
}

async function offersFor(outline: Outline, cursor: ValueCursor, workspace: Workspace): Promise<Offer[]> {
  const { path, meta } = cursor.field
  switch (path) {
    case 'lora.target_modules':
      return targetOffers(outline, workspace, cursor)
    case 'lora.modules_to_save':
      return [
        { value: 'embed_tokens', detail: 'the input embedding' },
        { value: 'lm_head', detail: 'the output layer' },
      ]
    case 'lora.init_adapter':
      return (await modelOffers(workspace)).filter(({ kind }) => kind === itemKind.file)
    case 'data.text_column':
      return columnOffers(outline, workspace)
    case 'data.format_type':
      return formatOffers(outline, cursor, workspace)
    case 'data.eval_split':
      return [
        ...examples(cursor),
        { value: 'test', detail: 'the split of that name' },
        { value: 'validation', detail: 'the split of that name' },
      ].filter(unique)
    case 'data.split':
      return [...['train', 'test', 'validation'].map((value) => ({ value })), ...examples(cursor)].filter(unique)
    case 'save.quantization':
      return gguf.map(([value, detail]) => ({ value, detail }))
    case 'training.device':
      return deviceOffers(cursor, workspace)
  }
  switch (meta.path) {
    case 'model':
      return modelOffers(workspace)
    case 'dataset':
      return (await workspace.datasets()).map(({ name, bytes }) => ({
        value: name,
        detail: formatBytes(bytes),
        kind: itemKind.file,
      }))
    case 'checkpoint':
      return checkpointOffers(outline, workspace)
    default:
      return schemaOffers(cursor)
  }
}

const unique = (offer: Offer, index: number, all: readonly Offer[]): boolean =>
  all.findIndex(({ value }) => value === offer.value) === index

function examples({ field: { meta } }: ValueCursor): Offer[] {
  return (meta.examples ?? []).map((value) =>
    typeof value === 'string' ? { value } : { value: yamlValue(value), literal: true },
  )
}

/** What the schema knows: the closed set of values, or default and examples. */
function schemaOffers(cursor: ValueCursor): Offer[] {
  const { meta } = cursor.field
  const isDefault = (value: unknown): boolean =>
    value === meta.default || (Array.isArray(meta.default) && meta.default.includes(value))
  if (meta.kind === 'boolean') {
    return [true, false].map((value) => ({
      value: String(value),
      literal: true,
      kind: itemKind.constant,
      ...(isDefault(value) ? { detail: 'default' } : {}),
    }))
  }
  if (meta.values !== undefined) {
    return Object.entries(meta.values).map(([value, doc]) => {
      const real = value === 'true' ? true : value === 'false' ? false : value
      const missing = meta.availability?.applies(meta.kind === 'list' ? [real] : real) === true
      const detail = [
        isDefault(real) ? 'default' : '',
        missing ? (meta.availability?.severity === 'error' ? 'not available yet' : 'runs differently') : '',
      ]
        .filter((part) => part !== '')
        .join(' · ')
      return {
        value,
        kind: itemKind.enumMember,
        literal: typeof real === 'boolean',
        doc: missing ? `${doc}\n\n${meta.availability?.note}.` : doc,
        detail: detail === '' ? doc.replaceAll('`', '') : `${doc.replaceAll('`', '')} · ${detail}`,
      }
    })
  }
  if (typeof meta.default === 'number' || (typeof meta.default === 'string' && meta.default !== '')) {
    return [{ value: yamlValue(meta.default), detail: 'default', literal: true }, ...examples(cursor)].filter(unique)
  }
  return examples(cursor)
}

async function modelOffers(workspace: Workspace): Promise<Offer[]> {
  return (await workspace.models()).map(({ name, kind, from, architecture, bytes }) => ({
    value: name,
    kind: kind === 'adapter' ? itemKind.file : itemKind.module,
    detail: [kind === 'adapter' ? 'adapter' : architecture, bytes > 0 ? formatBytes(bytes) : undefined, from]
      .filter((part) => part !== undefined)
      .join(' · '),
  }))
}

async function targetOffers(outline: Outline, workspace: Workspace, cursor: ValueCursor): Promise<Offer[]> {
  const model = outline.value('model.name')
  const found = model === undefined ? [] : await workspace.targetModules(model)
  const names = found.length > 0 ? found : [...defaultTargetModules]
  const from = found.length > 0 ? 'a layer of this model' : 'a layer of most models'
  const all: Offer[] =
    cursor.item === undefined || cursor.others.length === 0
      ? [{ value: 'all-linear', detail: 'every linear layer', best: true }]
      : []
  const list: Offer[] =
    cursor.item === undefined && cursor.quote === undefined
      ? [{ value: `[${names.join(', ')}]`, detail: 'all of them as a list', literal: true }]
      : []
  return [
    ...all,
    ...list,
    ...names.map((value) => ({ value, detail: from })),
    { value: 'embed_tokens', detail: 'trained whole' },
    { value: 'lm_head', detail: 'trained whole' },
  ]
}

/** The first data file of the recipe. */
export const firstDataset = (outline: Outline): string | undefined =>
  outline.list('data.local_dataset')[0] ?? outline.value('data.dataset')

async function columnOffers(outline: Outline, workspace: Workspace): Promise<Offer[]> {
  const dataset = firstDataset(outline)
  const columns = dataset === undefined ? [] : await workspace.columns(dataset)
  const found = columns.map((value) => ({ value, detail: `a column of ${dataset}` }))
  return found.length > 0 ? found : [{ value: 'text', detail: 'default' }]
}

async function formatOffers(outline: Outline, cursor: ValueCursor, workspace: Workspace): Promise<Offer[]> {
  const dataset = firstDataset(outline)
  const facts = dataset === undefined ? undefined : await workspace.dataset(dataset)
  const found = facts?.ok === true ? facts.value.format : undefined
  return schemaOffers(cursor).map((offer) =>
    offer.value === found ? { ...offer, detail: `${offer.detail} · what ${dataset} looks like` } : offer,
  )
}

async function deviceOffers(cursor: ValueCursor, workspace: Workspace): Promise<Offer[]> {
  const devices = await workspace.devices()
  const described = ({ label, totalBytes }: FoundDevice): string =>
    `${label}${totalBytes === undefined ? '' : `, ${formatBytes(totalBytes)}`}`
  const known = schemaOffers(cursor).map((offer) => {
    const device = devices.find(({ id }) => id === offer.value || id.startsWith(`${offer.value}:`))
    return device === undefined ? offer : { ...offer, detail: `${described(device)} · ${offer.detail}` }
  })
  const { series } = cursor.field.meta
  const numbered = devices.filter(({ id }) => series !== undefined && new RegExp(series.pattern).test(id))
  return [
    ...known,
    ...numbered.map((device): Offer => ({
      value: device.id,
      kind: itemKind.enumMember,
      doc: series!.doc,
      detail: described(device),
    })),
  ]
}

async function checkpointOffers(outline: Outline, workspace: Workspace): Promise<Offer[]> {
  const found = await workspace.checkpoints(outline.value('training.output_dir') ?? './outputs')
  return [
    { value: 'latest', detail: 'the newest checkpoint below output_dir', literal: true, best: true },
    ...found.map(({ name, step, loss, run }) => ({
      value: name,
      kind: itemKind.folder,
      detail: `step ${formatCount(step)}${loss === null ? '' : ` · loss ${loss.toFixed(3)}`} · ${run}`,
    })),
  ]
}
