import type { CommandName } from '../graph/commands.ts'
import { column, f32, numbers, positive, stat, x, y, zeros, type OpCase, type OpOperand } from './opCase.ts'
import { quantisedCases } from './quantisedCases.ts'

type Operands = readonly (OpOperand | undefined)[]

const c = (
  command: CommandName,
  label: string,
  operands: Operands,
  ints: readonly number[] = [],
  floats: readonly number[] = [],
  more: Partial<OpCase> = {},
): OpCase => ({ command, label, operands, ints, floats, ...more })

const range = (count: number, of: (i: number) => number): number[] => Array.from({ length: count }, (_, i) => of(i))

function gemms(): OpCase[] {
  const shapes = [
    [256, 384, 512],
    [128, 896, 896],
    [130, 72, 40],
    [7, 33, 19],
    [384, 16, 1024],
    [1, 512, 256],
  ] as const
  const cases = shapes.flatMap(([m, n, k]) =>
    [0, 1, 2].map((mode) => {
      const a = mode === 2 ? x(k, m) : x(m, k)
      const b = mode === 0 ? x(n, k) : x(k, n)
      return c('gemm', `${['XWᵀ', 'dYW', 'dYᵀX'][mode]} ${m}x${n}x${k}`, [y(m, n), a, b, undefined, undefined], [mode, 0, 0], [1])
    }),
  )
  const [m, n, k, r] = [256, 384, 256, 16]
  return [
    ...cases,
    c('gemm', 'bias and residual', [y(m, n), x(m, k), x(n, k), x(1, n), x(m, n)], [0, 0, 0], [0.5]),
    c(
      'gemm',
      'low-rank terms',
      [y(m, n), x(m, k), x(n, k), undefined, undefined, x(m, r), x(128, r), x(m, r), x(256, r)],
      [0, 0, 0, 0, 128],
      [1, 1, 1],
    ),
    c(
      'gemm',
      'low-rank term of the gradient',
      [x(m, n), x(m, k), x(k, n), undefined, undefined, x(m, r), x(r, n)],
      [1, 1, 0, 0],
      [1, 1],
    ),
    c('gemm', 'a factor on the term', [y(m, n), x(m, k), x(n, k), undefined, undefined, x(m, r), x(n, r)], [0, 0, 0, 0], [1, 2]),
    c('gemm', 'gradient of a parameter', [f32(16, 512), x(384, 16), x(384, 512), undefined, undefined], [2, 1, 0], [1]),
    c('gemm', 'fp32 result', [stat(130, 256), x(130, 64), x(256, 64), undefined, undefined], [0, 0, 0], [1]),
  ]
}

/** Rows, rank and the widths of the parts; some fit the pass that takes all parts at once, some do not. */
function adapters(): OpCase[] {
  return (
    [
      [256, 16, [512, 128, 128]],
      [130, 8, [896]],
      [384, 32, [1024, 1024]],
      [33, 4, [96, 40]],
      [257, 64, [200]],
      [7, 72, [33]],
    ] as const
  ).map(([n, r, widths]) => {
    const width = widths.reduce<number>((sum, each) => sum + each, 0)
    const ints = widths.flatMap((each, j) => [widths.slice(0, j).reduce<number>((sum, other) => sum + other, 0), each])
    const operands = [y(n, widths.length * r), f32(width, r), x(n, width), x(n, widths.length * r), x(width, r)]
    return c('loraGrad', `${n} rows, rank ${r}, parts of ${widths.join(', ')}`, operands, [0, ...ints], [0.5])
  })
}

function attentions(): OpCase[] {
  const shapes = [
    { d: 128, heads: 4, kv: 2, window: 0, cap: 0 },
    { d: 64, heads: 4, kv: 1, window: 0, cap: 0 },
    { d: 64, heads: 2, kv: 2, window: 40, cap: 0 },
    { d: 256, heads: 2, kv: 1, window: 0, cap: 20 },
    { d: 96, heads: 2, kv: 2, window: 0, cap: 0 },
    { d: 80, heads: 2, kv: 1, window: 0, cap: 0 },
    { d: 48, heads: 3, kv: 3, window: 0, cap: 0 },
    { d: 16, heads: 4, kv: 2, window: 0, cap: 0 },
  ]
  const lengths = [65, 1, 130, 60]
  const rows = lengths.reduce((a, b) => a + b, 0)
  const starts = lengths.reduce<number[]>((all, length) => [...all, all.at(-1)! + length], [0])
  const where = [column(starts), column(starts.slice(0, -1)), column(lengths)]
  return shapes.flatMap(({ d, heads, kv, window, cap }) => {
    const label = `head ${d}, ${heads}/${kv}${window > 0 ? `, window ${window}` : ''}${cap > 0 ? `, softcap ${cap}` : ''}`
    const [ints, floats] = [
      [heads, kv, window],
      [1 / Math.sqrt(d), cap],
    ] as const
    const [q, k, v] = [x(rows, heads * d), x(rows, kv * d), x(rows, kv * d)]
    const counts = { tokens: rows, sequences: lengths.length }
    const o = x(rows, heads * d)
    const lse: OpOperand = { rows, cols: heads, type: 'f32', fill: { kind: 'value', value: 5 } }
    return [
      c('attention', label, [y(rows, heads * d), stat(rows, heads), q, k, v, ...where], ints, floats, counts),
      c(
        'attentionGrad',
        label,
        [y(rows, heads * d), y(rows, kv * d), y(rows, kv * d), stat(rows, heads), o, o, lse, q, k, v, ...where],
        ints,
        floats,
        { ...counts, ignore: [3] },
      ),
    ]
  })
}

function norms(): OpCase[] {
  return [
    [130, 896, 1],
    [64, 4096, 1],
    [33, 512, 8],
    [5, 30, 3],
  ].flatMap(([rows, cols, groups]) => {
    const width = cols! / groups!
    const label = `${rows}x${cols}${groups === 1 ? '' : `, ${groups} groups`}`
    const [n, h, g] = [rows!, cols!, groups!]
    return [
      c('rmsNorm', label, [y(n, h), stat(n, g), x(n, h), x(1, width)], [g, 0], [1e-5]),
      c('rmsNorm', `${label}, 1 + w`, [y(n, h), stat(n, g), x(n, h), x(1, width)], [g, 1], [1e-6]),
      c('rmsNormGrad', label, [x(n, h), zeros(1, width), x(n, h), x(n, h), x(1, width), positive(n, g)], [g, 0, 1], []),
      c('layerNorm', label, [y(n, h), stat(n, 2 * g), x(n, h), x(1, width), x(1, width)], [g], [1e-5]),
      c(
        'layerNormGrad',
        label,
        [y(n, h), zeros(1, width), zeros(1, width), x(n, h), x(n, h), x(1, width), positive(n, 2 * g)],
        [g, 0],
        [],
      ),
    ]
  })
}

const scaling = (squares: number): Operands => [
  zeros(1, 16, 'f64'),
  numbers('f64', [1024, 1, 3, 0], 4),
  numbers('f64', [squares]),
  numbers('f64', [1]),
  numbers('f64', [2, ...range(20, (i) => 0.1 * i)], 21),
]

function elementwise(): OpCase[] {
  const [n, f] = [130, 300]
  return [
    ...[0, 1, 2].flatMap((kind) => [
      c('glu', `kind ${kind}`, [y(n, f), x(n, f), x(n, f)], [kind]),
      c('gluGrad', `kind ${kind}`, [y(n, f), y(n, f), undefined, x(n, f), x(n, f), x(n, f)], [kind]),
      c('gluGrad', `kind ${kind}, with h`, [y(n, f), y(n, f), y(n, f), x(n, f), x(n, f), x(n, f)], [kind]),
    ]),
    ...range(6, (kind) => kind).flatMap((kind) => [
      c('activation', `kind ${kind}`, [y(n, f), x(n, f)], [kind]),
      c('activationGrad', `kind ${kind}`, [y(n, f), x(n, f), x(n, f)], [kind]),
    ]),
    c('add', 'a + 0.5 b', [y(n, f), x(n, f), x(n, f)], [], [1, 0.5]),
    c('add', 'one', [y(n, f), x(n, f), undefined], [], [0.25, 0]),
    c('columnSum', `${n}x${f}`, [f32(1, f), x(n, f)], [], [0.5]),
    c('fill', '0.5', [y(n, f)], [], [0.5]),
    c('cast', 'to the activations’ type', [y(n, f), f32(n, f)]),
    c('cast', 'to fp32', [stat(n, f), x(n, f)]),
    c('offload', 'a matrix', [y(n, f), x(n, f)]),
    c('prefetch', 'a matrix', [y(n, f), x(n, f)]),
    c('awaitCopy', 'of nothing under way', [x(n, f)]),
    c('logitCap', 'cap 30', [f32(n, f, 20)], [], [0.5, 30]),
    c('dot', 'list', [zeros(1, 1, 'f64'), f32(1000, 1), f32(1000, 1)], [0]),
    c('sumSquares', 'flat', [zeros(1, 1, 'f64'), f32(1, 100_000)], [0, 0]),
    c('clipScale', 'clipped', [zeros(1, 4, 'f64'), numbers('f64', [9]), numbers('f64', [1])], [], [1]),
    ...(['device', 'host'] as const).map((place) =>
      c(
        'adamw',
        `one step in ${place} memory`,
        [f32(1, 10_000), f32(1, 10_000, 0.1), positive(1, 10_000), f32(1, 10_000), numbers('f64', [0.7, 0.1, 0.001, 1e-3], 4)],
        [0],
        [0.9, 0.999, 1e-8, 0.01],
        { place },
      ),
    ),
    c('updateScale', 'a good step', scaling(9e6), [2, 5], [1]),
    c('updateScale', 'a spoilt step', scaling(Infinity), [2, 5], [1], { ignore: [0] }),
    c('scaleLoss', 'weights', [stat(n, 1), f32(n, 1), numbers('f64', [32_768, 0, 0, 0], 4)]),
  ]
}

/** Rank, scale and products of a weight [n, k] that fit each other: A·Wᵀ and A·Aᵀ of small numbers beside ‖W‖² = 1 … 4. */
function doraNorms(): OpCase[] {
  return (
    [
      [96, 16],
      [77, 5],
      [300, 130],
    ] as const
  ).map(([n, r]) =>
    c(
      'doraNorm',
      `${n} rows, rank ${r}`,
      [
        stat(1, n),
        stat(1, n),
        numbers(
          'f32',
          range(n, (i) => 1 + (i % 4)),
          n,
        ),
        positive(1, n),
        x(n, r, 0.1),
        f32(r, n, 0.01),
        f32(r, r, 0.01),
      ],
      [],
      [0.5],
    ),
  )
}

function columns(): OpCase[] {
  return (
    [
      [130, 304],
      [37, 33],
    ] as const
  ).flatMap(([n, h]) => [
    c('scaleColumns', `${n}x${h}`, [y(n, h), x(n, h), f32(1, h), undefined, undefined], [], [1]),
    c('scaleColumns', `${n}x${h}, bias and residual`, [y(n, h), x(n, h), f32(1, h), x(1, h), x(n, h)], [], [0.5]),
    c('scaleColumnsGrad', `${n}x${h}`, [y(n, h), f32(1, h), x(n, h), x(n, h), f32(1, h), positive(1, h)], [], [0.5]),
    c('rowSquares', `${n}x${h}`, [stat(1, n), x(n, h)]),
  ])
}

function rows(): OpCase[] {
  const [n, h, vocabulary] = [130, 96, 50]
  const ids = range(n, (i) => (i * 17) % vocabulary)
  const some = range(64, (i) => (i % 5 === 4 ? -1 : 2 * i))
  const keys = numbers(
    'i32',
    range(2 * n, (i) => i),
    2,
  )
  return [
    c('embed', 'rows', [y(n, h), column(ids), x(vocabulary, h)], [], [2]),
    c('embed', 'rows in host memory', [y(n, h), column(ids), x(vocabulary, h)], [], [2], { place: 'host' }),
    c('embedGrad', 'rows', [f32(vocabulary, h), column(ids), x(n, h)], [], [2]),
    c('gatherRows', 'with gaps', [y(64, h), x(n, h), column(some)]),
    c('scatterRows', 'anew', [y(n, h), x(64, h), column(some)], [0]),
    c('scatterRows', 'added', [x(n, h), x(64, h), column(some)], [1]),
    c('storeRows', 'cache', [x(256, h), x(64, h), column(range(64, (i) => 3 * i))]),
    c('ropeTable', 'two tables', [
      stat(n, 32),
      column(range(n, (i) => i * 7)),
      column(range(n, (i) => i % 2)),
      positive(2, 16),
      positive(2, 1),
    ]),
    c('rope', 'halves', [y(n, 4 * 24), x(n, 4 * 24), f32(n, 16)], [4, 24, 0, 0]),
    c('rope', 'pairs, backwards', [y(n, 4 * 24), x(n, 4 * 24), f32(n, 16)], [4, 24, 1, 1]),
    c('dropout', 'p 0.25', [y(n, h), x(n, h), keys, numbers('i32', [7, 3], 2)], [2, 0], [0.25]),
    c('scaleRows', 'weights', [y(n, h), x(n, h), f32(n, 1)]),
    c('scaleRowsGrad', 'weights', [y(n, h), stat(n, 1), x(n, h), x(n, h), f32(n, 1)]),
    c('scaleRows', 'a gate', [y(n, h), x(n, h), x(n, 1)]),
    c('scaleRowsGrad', 'a gate', [y(n, h), y(n, 1), x(n, h), x(n, h), x(n, 1)]),
    c(
      'combineRows',
      'two each',
      [
        y(n, h),
        x(2 * n, h),
        numbers(
          'i32',
          range(2 * n, (i) => (i * 3) % (2 * n)),
          2,
        ),
        x(n, h),
      ],
      [0],
    ),
  ]
}

function heads(): OpCase[] {
  const [m, h, vocabulary] = [130, 64, 1000]
  const labels = column(range(m, (i) => (i * 37) % vocabulary))
  const weights = numbers(
    'f32',
    range(m, (i) => (i % 7 === 0 ? 0 : 1 / m)),
  )
  const small = (operand: OpOperand): OpOperand => ({ ...operand, fill: { kind: 'normal', scale: 0.3 } })
  const head = (name: string, cap: number, dW?: OpOperand): OpCase =>
    c(
      'headLoss',
      name,
      [
        stat(m, 1),
        y(m, h),
        dW,
        y(128, vocabulary),
        undefined,
        small(x(m, h)),
        small(x(vocabulary, h)),
        labels,
        weights,
        undefined,
      ],
      [0],
      [1, cap],
      { ignore: [3] },
    )
  return [head('plain', 0), head('softcap 20', 20), head('with dW', 0, f32(vocabulary, h))]
}

function experts(): OpCase[] {
  const [n, e, k, cols, out] = [130, 8, 2, 64, 96]
  const first = column([0, 40, 40, 90, 130, 131, 200, 230, 260])
  return [
    c(
      'route',
      'renormalised',
      [stat(n * k, 1), zeros(n * k, 1, 'i32'), zeros(n, k, 'i32'), zeros(e + 1, 1, 'i32'), undefined, f32(n, e)],
      [1],
      [],
      { tokens: n },
    ),
    c('expertGemm', 'XWᵀ', [y(n * k, out), x(n * k, cols), x(e * out, cols), first], [0, 0, 0], [1, 1], { tokens: n }),
    c('expertGemm', 'dYW', [y(n * k, cols), x(n * k, out), x(e * out, cols), first], [1, 0, 0], [1, 1], { tokens: n }),
    c('expertGemm', 'dYᵀX', [f32(e * out, cols), x(n * k, out), x(n * k, cols), first], [2, 0, 0], [1, 1], { tokens: n }),
  ]
}

/** Every kind of command on small odd shapes. */
export const opTable = (): OpCase[] => [
  ...gemms(),
  ...adapters(),
  ...attentions(),
  ...norms(),
  ...elementwise(),
  ...rows(),
  ...columns(),
  ...doraNorms(),
  ...heads(),
  ...experts(),
  ...quantisedCases(),
]
