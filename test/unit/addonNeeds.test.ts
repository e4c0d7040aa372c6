import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const addon = fileURLToPath(new URL('../../build/cpu/kernels.node', import.meta.url))

interface Section {
  readonly type: number
  readonly offset: number
  readonly size: number
  readonly link: number
  readonly info: number
}

/** What an ELF file asks of the system (System V ABI, and the LSB's symbol versioning). */
function needs(path: string): { readonly libraries: string[]; readonly versions: string[] } {
  const file = readFileSync(path)
  assert.equal(file.toString('latin1', 0, 6), '\x7fELF\x02\x01', 'a 64-bit little-endian ELF file')
  const sectionsAt = Number(file.readBigUInt64LE(0x28))
  const sections = Array.from({ length: file.readUInt16LE(0x3c) }, (_, index): Section => {
    const at = sectionsAt + index * file.readUInt16LE(0x3a)
    return {
      type: file.readUInt32LE(at + 4),
      offset: Number(file.readBigUInt64LE(at + 24)),
      size: Number(file.readBigUInt64LE(at + 32)),
      link: file.readUInt32LE(at + 40),
      info: file.readUInt32LE(at + 44),
    }
  })
  const text = ({ link }: Section, offset: number): string => {
    const start = sections[link]!.offset + offset
    return file.toString('latin1', start, file.indexOf(0, start))
  }
  const only = (type: number): Section => sections.find((section) => section.type === type)!
  const dynamic = only(6)
  const libraries: string[] = []
  for (let at = dynamic.offset; at < dynamic.offset + dynamic.size; at += 16) {
    if (file.readBigUInt64LE(at) === 1n) libraries.push(text(dynamic, Number(file.readBigUInt64LE(at + 8))))
  }
  const needed = only(0x6ffffffe)
  const versions: string[] = []
  for (let count = 0, at = needed.offset; count < needed.info; count++) {
    for (let entry = 0, aux = at + file.readUInt32LE(at + 8); entry < file.readUInt16LE(at + 2); entry++) {
      versions.push(text(needed, file.readUInt32LE(aux + 8)))
      aux += file.readUInt32LE(aux + 12)
    }
    at += file.readUInt32LE(at + 12)
  }
  return { libraries, versions }
}

// Elsewhere there is no ELF file to read.
if (process.platform === 'linux') {
  describe('the addon on older systems', () => {
    it('asks for glibc 2.28 at most', () => {
      const versions = needs(addon).versions.filter((version) => version.startsWith('GLIBC_'))
      assert.ok(versions.includes('GLIBC_2.2.5'), versions.join(' '))
      const tooNew = versions.filter((version) => {
        const [major, minor] = version.slice('GLIBC_'.length).split('.').map(Number)
        return major! > 2 || (major === 2 && minor! > 28)
      })
      assert.deepEqual(tooNew, [], 'kernels/core/oldGlibc.cc says what to do about a symbol that is too new')
    })

    it('brings its own C++ library', () => {
      assert.deepEqual(
        needs(addon).libraries.filter((name) => !/^(libc|libm|libpthread|libdl|ld-linux-x86-64|librt)\.so\.\d$/.test(name)),
        [],
      )
    })
  })
}
