import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
export { stepRecord } from './children/stepRecord.ts'
import type { RunFs } from '../../../engine/run/files.ts'

/** A folder for one test file, removed at the end. */
export function temporaryFolder(): string {
  const folder = fs.mkdtempSync(join(tmpdir(), 'unsloth-test-'))
  after(() => fs.rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** Points the runtime folder (sockets, device locks) into the tests' own folder. */
export function ownRuntimeFolder(parent: string): void {
  let earlier: string | undefined
  before(() => {
    earlier = process.env.UNSLOTH_RUNTIME_DIR
    process.env.UNSLOTH_RUNTIME_DIR = join(parent, 'runtime')
  })
  after(() => {
    if (earlier === undefined) delete process.env.UNSLOTH_RUNTIME_DIR
    else process.env.UNSLOTH_RUNTIME_DIR = earlier
  })
}

/** A program of test/unit/run/children as one plain JavaScript file, which starts quickly. */
export async function bundleChild(name: string, folder: string): Promise<string> {
  const outfile = join(folder, `${name}.cjs`)
  await build({
    entryPoints: [fileURLToPath(new URL(`children/${name}.ts`, import.meta.url))],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'cjs',
    target: 'node20',
    logLevel: 'silent',
  })
  return outfile
}

/** node:fs on a disk that takes `room` more bytes and then is full; `room` can be changed. */
export function smallDisk(room: number): RunFs & { room: number } {
  const disk = {
    ...fs,
    room,
    writeSync(fd: number, data: NodeJS.ArrayBufferView | string, ...rest: unknown[]): number {
      const length = typeof rest[1] === 'number' ? rest[1] : Buffer.byteLength(data)
      if (disk.room <= 0) throw Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' })
      const taken = Math.min(length, disk.room)
      disk.room -= taken
      return typeof data === 'string'
        ? fs.writeSync(fd, data)
        : fs.writeSync(fd, data, rest[0] as number, taken, rest[2] as number | null)
    },
  }
  return disk
}
