import { strict as assert } from 'node:assert'
import { commandSignatures } from '../../../engine/graph/commands.ts'
import { slice, whole, type Command, type Storage, type Tensor } from '../../../engine/graph/graph.ts'
import { align, alignment, planMemory, storageBytes, type Plan } from '../../../engine/graph/plan.ts'
import { uniform } from '../../reference/matrix.ts'

const activation = (name: string, cols: number): Tensor =>
  whole({ name, arena: 'activations', offset: -1, dtype: 'f32', rows: 8, cols, rule: 'fixed', keep: 'residual', layer: -1 })

const add = (y: Tensor, a: Tensor, b: Tensor | undefined, inPlace: Command['inPlace'] = []): Command => ({
  name: 'add',
  tensors: [y, a, b],
  ints: [],
  floats: [1, 1],
  inPlace,
})

/** A random program: every value is written by one command and read by some later ones. */
function randomProgram(seed: number, length: number): Command[] {
  const next = uniform(seed)
  const pick = <T>(from: readonly T[]): T => from[Math.floor(next() * from.length)]!
  const values = [activation('v0', 1 + Math.floor(next() * 400))]
  const commands = [add(values[0]!, values[0]!, undefined)]
  for (let i = 1; i < length; i++) {
    const a = pick(values.slice(-12))
    const b = next() < 0.5 ? pick(values) : undefined
    const shares = next() < 0.4
    const y = activation(`v${i}`, shares ? a.cols : 1 + Math.floor(next() * 400))
    values.push(y)
    commands.push(add(y, a, b, shares ? [[0, 1]] : []))
  }
  return commands
}

/** First and last command of every activation. */
function lives(commands: readonly Command[]): Map<Storage, { first: number; last: number }> {
  const found = new Map<Storage, { first: number; last: number }>()
  commands.forEach((command, at) => {
    for (const tensor of command.tensors) {
      if (tensor === undefined) continue
      const life = found.get(tensor.storage)
      if (life === undefined) found.set(tensor.storage, { first: at, last: at })
      else life.last = at
    }
  })
  return found
}

/** Whether b takes over a's memory at the command where a dies. */
function takesOver(commands: readonly Command[], a: Storage, b: Storage, at: number): boolean {
  return (commands[at]?.inPlace ?? []).some(
    ([output, input]) => commands[at]!.tensors[output]?.storage === b && commands[at]!.tensors[input]?.storage === a,
  )
}

function check(commands: readonly Command[], plan: Plan): void {
  const all = [...lives(commands)]
  for (const [storage] of all) {
    const offset = plan.offsets.get(storage)!
    assert.equal(offset % alignment, 0)
    assert.ok(offset >= 0 && offset + storageBytes(storage) <= plan.activationBytes, storage.name)
  }
  all.forEach(([a, lifeA], i) => {
    for (const [b, lifeB] of all.slice(i + 1)) {
      if (lifeA.last < lifeB.first || lifeB.last < lifeA.first) continue
      const [from, to] = [plan.offsets.get(a)!, plan.offsets.get(b)!]
      if (from + storageBytes(a) <= to || to + storageBytes(b) <= from) continue
      const handedOver =
        (lifeA.last === lifeB.first && takesOver(commands, a, b, lifeB.first)) ||
        (lifeB.last === lifeA.first && takesOver(commands, b, a, lifeA.first))
      assert.ok(handedOver && from === to, `${a.name} and ${b.name} share memory while both live`)
    }
  })
}

describe('planMemory', () => {
  it('never lets two live values overlap, and stays above its lower bound', () => {
    for (let seed = 1; seed <= 60; seed++) {
      const commands = randomProgram(seed, 5 + (seed % 7) * 20)
      const plan = planMemory(commands)
      check(commands, plan)
      assert.ok(plan.activationBytes >= plan.lowerBound, `${plan.activationBytes} bytes, bound ${plan.lowerBound}`)
    }
  })

  it('needs little more than the lower bound', () => {
    const ratios = Array.from({ length: 40 }, (_, seed) => {
      const { activationBytes, lowerBound } = planMemory(randomProgram(seed + 100, 120))
      return activationBytes / lowerBound
    })
    const mean = ratios.reduce((sum, ratio) => sum + ratio, 0) / ratios.length
    assert.ok(mean < 1.1, `on average ${mean} of the bound`)
  })

  it('is deterministic', () => {
    const offsets = () => [...planMemory(randomProgram(7, 100)).offsets.values()]
    assert.deepEqual(offsets(), offsets())
  })

  it('gives an output its dead input’s memory, and not that of one still alive', () => {
    const [a, b, c] = [activation('a', 64), activation('b', 64), activation('c', 64)]
    const start = add(a, a, undefined)
    const dead = planMemory([start, add(b, a, undefined, [[0, 1]])])
    assert.equal(dead.activationBytes, align(storageBytes(a.storage)))
    const alive = planMemory([start, add(b, a, undefined, [[0, 1]]), add(c, a, b)])
    assert.equal(alive.activationBytes, 3 * align(storageBytes(a.storage)))
  })

  it('keeps what a product reads until glu of it is done, which may be the same kernel', () => {
    const [x, u, gateUp, h, y] = [
      activation('x', 40),
      activation('u', 8),
      activation('gateUp', 128),
      activation('h', 64),
      activation('y', 16),
    ]
    const make = (to: Tensor): Command => ({ name: 'fill', tensors: [to], ints: [], floats: [1] })
    const gemm = (c: Tensor, a: Tensor, low?: Tensor): Command => ({
      name: 'gemm',
      tensors: [c, a, y, undefined, undefined, ...(low === undefined ? [] : [low, y])],
      ints: [0, 0, 0],
      floats: [1],
    })
    const halves = [slice(gateUp, 0, 64), slice(gateUp, 64, 64)]
    const glu: Command = { name: 'glu', tensors: [h, ...halves], ints: [0], floats: [] }
    const apart = (commands: readonly Command[], input: Tensor): boolean => {
      const { offsets } = planMemory(commands)
      const [from, to] = [offsets.get(input.storage)!, offsets.get(h.storage)!]
      return from + storageBytes(input.storage) <= to || to + storageBytes(h.storage) <= from
    }
    const together = [make(y), make(x), make(u), gemm(gateUp, x, u), glu, gemm(y, h)]
    assert.ok(apart(together, x) && apart(together, u))
    assert.ok(!apart([...together.slice(0, 4), make(y), glu, gemm(y, h)], x), 'with a command between them there are two kernels')
  })

  it('leaves memory that belongs to others alone', () => {
    const weight = whole({ ...activation('w', 64).storage, arena: 'weights', offset: 512 })
    const y = activation('y', 64)
    const plan = planMemory([add(y, weight, undefined)])
    assert.deepEqual(
      [...plan.offsets.keys()].map(({ name }) => name),
      ['y'],
    )
  })
})

describe('commandSignatures', () => {
  it('name outputs first, and repeat only at the end', () => {
    for (const [name, { tensors, outputs }] of Object.entries(commandSignatures)) {
      assert.ok(outputs <= tensors.length, name)
      const repeated = tensors.findIndex((operand) => operand.startsWith('…'))
      if (repeated >= 0)
        assert.ok(
          tensors.slice(repeated).every((operand) => operand.startsWith('…')),
          `${name}: ${tensors.join(' ')}`,
        )
    }
  })
})
