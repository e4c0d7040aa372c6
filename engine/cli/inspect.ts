import { stat } from 'node:fs/promises'
import { formatBytes, formatCompact, formatCount } from '#shared/units.ts'
import { readError } from '../io/fileSystem.ts'
import { readModelFolder, type ConfigFile, type ModelFolder } from '../io/modelFolder.ts'
import { openPeftAdapter, type PeftAdapter } from '../io/peftAdapter.ts'
import { printable } from '../io/printable.ts'
import { groupTensors, parametersByType, totalsByType, type DescribedTensor, type TypeTotal } from '../io/tensorGroups.ts'
import { openTensorSource, type TensorSource } from '../io/tensorSource.ts'
import { Config } from '../model/config.ts'

/** What `unsloth inspect` found; its `--json` output. */
export interface InspectReport {
  readonly path: string
  readonly kind: 'safetensors' | 'model' | 'adapter'
  /** What the configuration says, in the order to show it: label → value. */
  readonly facts: Readonly<Record<string, string | number>>
  readonly parameters: { readonly total: number; readonly byType: readonly TypeTotal[] }
  readonly files: readonly string[]
  readonly bytes: number
  readonly metadata: Readonly<Record<string, string>>
  readonly totals: readonly TypeTotal[]
  readonly tensors: readonly DescribedTensor[]
  readonly warnings: readonly string[]
}

type Facts = [label: string, value: string | number | undefined][]

const list = (values: readonly string[]): string => (values.length === 0 ? 'none' : values.join(', '))

function ropeFact(config: Config): string | undefined {
  const section = config.section('rope_parameters', 'rope_scaling')
  const theta = section?.optionalNumber('rope_theta') ?? config.optionalNumber('rope_theta')
  const type = section?.string('rope_type', 'type') ?? 'default'
  const factor = section?.optionalNumber('factor')
  if (theta === undefined && section === undefined) return undefined
  const parts = [type]
  if (theta !== undefined) parts.push(`theta ${formatCount(theta)}`)
  if (factor !== undefined) parts.push(`factor ${factor}`)
  return parts.join(', ')
}

function modelFacts({ values, where }: ConfigFile, folder: ModelFolder): Facts {
  const outer = new Config(values, where)
  // Vision models keep the language model's numbers in a section of their own.
  const config = outer.section('text_config') ?? outer
  const tokenizer = folder.tokenizerFiles.filter((name) => !/^(pre)?processor_config/.test(name))
  return [
    ['Architecture', list(outer.strings('architectures') ?? [])],
    ['Model type', outer.string('model_type')],
    ['Context length', config.optionalNumber('max_position_embeddings')],
    ['Sliding window', config.optionalNumber('sliding_window')],
    ['Layers', config.optionalNumber('num_hidden_layers')],
    ['Hidden size', config.optionalNumber('hidden_size')],
    ['MLP size', config.optionalNumber('intermediate_size')],
    ['Attention heads', config.optionalNumber('num_attention_heads')],
    ['Key/value heads', config.optionalNumber('num_key_value_heads')],
    ['Head size', config.optionalNumber('head_dim')],
    ['Experts', config.optionalNumber('num_local_experts', 'num_experts')],
    ['Vocabulary', config.optionalNumber('vocab_size')],
    ['Rotary embedding', ropeFact(config)],
    ['Tied embeddings', values.tie_word_embeddings === undefined ? undefined : String(values.tie_word_embeddings === true)],
    ['Data type', outer.string('dtype', 'torch_dtype') ?? config.string('dtype', 'torch_dtype')],
    ['Quantisation', outer.section('quantization_config')?.string('quant_method')],
    ['Tokenizer', tokenizer.length === 0 ? 'not in this folder' : list(tokenizer)],
  ]
}

function adapterFacts({ config, modules, saved, folder }: PeftAdapter): Facts {
  const ranks = [...new Set([...modules.values()].map(({ r }) => r))].sort((a, b) => a - b)
  const targets = [...new Set([...modules.keys()].map((module) => module.split('.').at(-1)!))]
  return [
    ['Base model', config.baseModel ?? 'not named'],
    ['Task', config.taskType ?? undefined],
    ['Rank (r)', ranks.length > 1 ? `${config.r} (${ranks.join(', ')} by module)` : config.r],
    ['Alpha', config.alpha],
    ['Scale', [...new Set([...modules.values()].map(({ scale }) => Number(scale.toPrecision(6))))].join(', ')],
    ['Dropout', config.dropout],
    ['rsLoRA', config.rslora ? 'yes' : undefined],
    ['DoRA', config.dora ? 'yes' : undefined],
    ['Adapted modules', `${modules.size}: ${list(targets.sort())}`],
    ['Stored whole', saved.size === 0 ? undefined : list([...saved.keys()].sort())],
    ['Tokenizer', folder.tokenizerFiles.length === 0 ? undefined : list(folder.tokenizerFiles)],
  ]
}

function report(
  path: string,
  kind: InspectReport['kind'],
  facts: Facts,
  source: TensorSource,
  warnings: readonly string[],
): InspectReport {
  const byType = parametersByType(source.tensors)
  const known = facts.filter((fact): fact is [string, string | number] => fact[1] !== undefined)
  return {
    path,
    kind,
    facts: Object.fromEntries(known),
    parameters: { total: byType.reduce((total, { elements }) => total + elements, 0), byType },
    files: source.files,
    bytes: source.totalBytes,
    metadata: Object.fromEntries(source.metadata),
    totals: totalsByType(source.tensors.values()),
    tensors: [...source.tensors.values()].map(({ name, dtype, shape, bytes }) => ({ name, dtype, shape, bytes })),
    warnings,
  }
}

const formatFact = (value: string | number): string =>
  typeof value === 'number' && Number.isInteger(value) ? formatCount(value) : String(value)

/** Describes a safetensors file, a shard index, a model folder or an adapter folder from headers and configurations alone. */
export async function inspectPath(path: string): Promise<InspectReport> {
  const info = await stat(path).catch((error: unknown) => {
    throw readError(error, path, 'model or safetensors file')
  })
  const folder = info.isDirectory() ? await readModelFolder(path) : undefined
  if (folder?.kind === 'adapter') {
    const adapter = await openPeftAdapter(path)
    return report(path, 'adapter', adapterFacts(adapter), await openTensorSource(adapter.weights), adapter.warnings)
  }
  const source = await openTensorSource(path)
  if (folder?.config === undefined) return report(path, 'safetensors', [], source, source.warnings)
  return report(path, 'model', modelFacts(folder.config, folder), source, source.warnings)
}

type Align = 'left' | 'right'

/** Lines with aligned columns, two spaces apart. */
function table(rows: readonly (readonly string[])[], align: readonly Align[]): string[] {
  const widths = align.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  const pad = (cell: string, column: number): string =>
    align[column] === 'right' ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!)
  return rows.map((row) => row.map(pad).join('  ').trimEnd())
}

function tensorLines(tensors: readonly DescribedTensor[], all: boolean): string[] {
  const groups = all ? tensors.map((tensor) => ({ ...tensor, count: 1 })) : groupTensors(tensors)
  const showCount = groups.length < tensors.length
  const row = (name: string, type: string, shape: string, count: string, size: string): string[] =>
    showCount ? [name, type, shape, count, size] : [name, type, shape, size]
  const rows = groups.map(({ name, dtype, shape, count, bytes }) =>
    row(printable(name), dtype, `[${shape.join(', ')}]`, formatCount(count), formatBytes(bytes)),
  )
  const align: Align[] = ['left', 'left', 'left', 'right', 'right']
  const head = row('Tensor', 'Type', 'Shape', 'Count', 'Size')
  return table([head, ...rows], showCount ? align : align.toSpliced(3, 1))
}

function totalLines(totals: readonly TypeTotal[]): string[] {
  const rows = totals.map(({ type, tensors, elements, bytes }) => [
    type,
    formatCount(tensors),
    formatCount(elements),
    formatBytes(bytes),
  ])
  return table([['Type', 'Tensors', 'Elements', 'Size'], ...rows], ['left', 'right', 'right', 'right'])
}

const kindNames = { safetensors: 'safetensors', model: 'model', adapter: 'LoRA adapter' } as const

/** The report as text. Tensors that differ only in layer number are one line unless `all`. */
export function formatReport(found: InspectReport, options: { readonly all?: boolean } = {}): string {
  const { parameters, files, metadata } = found
  const types = parameters.byType.map(({ type, elements }) => `${formatCompact(elements)} ${type}`).join(', ')
  const count = `${formatCount(parameters.total)}${types === '' ? '' : ` (${types})`}`
  const facts: [string, string | number][] = [
    ...Object.entries(found.facts),
    [found.kind === 'safetensors' ? 'Elements' : 'Parameters', count],
    ['Size', `${formatBytes(found.bytes)} in ${files.length} file${files.length === 1 ? '' : 's'}`],
  ]
  const sections = [
    [`${printable(found.path)}: ${kindNames[found.kind]}`],
    table(
      facts.map(([label, value]) => [label, printable(formatFact(value), 400)]),
      ['left', 'left'],
    ),
    Object.keys(metadata).length === 0
      ? []
      : [
          'Metadata',
          ...table(
            Object.entries(metadata).map(([key, value]) => [`  ${printable(key)}`, printable(value, 400)]),
            ['left', 'left'],
          ),
        ],
    found.tensors.length === 0 ? [] : tensorLines(found.tensors, options.all === true),
    found.totals.length === 0 ? [] : totalLines(found.totals),
    found.warnings.map((warning) => `Warning: ${warning}`),
  ]
  return `${sections
    .filter((section) => section.length > 0)
    .map((section) => section.join('\n'))
    .join('\n\n')}\n`
}

/** `unsloth inspect FILE|DIR [--all] [--json]`: the text to print. */
export async function inspect(path: string, options: { readonly all?: boolean; readonly json?: boolean } = {}): Promise<string> {
  const found = await inspectPath(path)
  return options.json === true ? `${JSON.stringify(found, null, 2)}\n` : formatReport(found, options)
}
