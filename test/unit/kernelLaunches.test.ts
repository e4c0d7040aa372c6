import assert from 'node:assert/strict'
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

const folder = join(import.meta.dirname, '../../kernels/cuda')
/** Kernels that run while weights are loaded or products timed: nothing is gained there. */
const plainlyLaunched = ['transfer.cu', 'quantise.cu', 'gemmChoices.cu']
const sources = readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter(
  (name) => /\.cuh?$/.test(name) && !plainlyLaunched.includes(name),
)

/** Names and bodies of the `__global__` functions of a source. */
function kernelsOf(source: string): { name: string; body: string }[] {
  return [...source.matchAll(/__global__[^{]*?(\w+)\((?:[^(){]|\([^()]*\))*\)\s*\{/g)].map((match) => {
    const from = match.index + match[0].length
    const end = source.indexOf('\n}', from)
    return { name: match[1]!, body: source.slice(from, end < 0 ? undefined : end) }
  })
}

describe('launches of CUDA kernels', () => {
  it('every kernel that may be started early waits for what came before', () => {
    let kernels = 0
    for (const name of sources) {
      const source = readFileSync(join(folder, name), 'utf8')
      const found = kernelsOf(source)
      assert.equal(found.length, source.match(/__global__/g)?.length ?? 0, `${name}: a kernel was not recognised`)
      for (const { name: kernel, body } of found)
        assert.match(body, /\bawaitPrior\(\);/, `${name}: ${kernel} does not call awaitPrior()`)
      kernels += found.length
    }
    assert.ok(kernels > 70)
  })

  it('commands start kernels in one way', () => {
    for (const name of sources)
      assert.doesNotMatch(
        readFileSync(join(folder, name), 'utf8'),
        /<<<|cudaLaunchKernel\w*\((?!&config, kernel, arguments)/,
        name,
      )
  })
})
