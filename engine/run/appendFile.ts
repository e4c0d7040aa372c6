import fs from 'node:fs'
import type { RunFs } from './files.ts'
import { fileWriteError, nodeFs, writeFully } from './files.ts'

/**
 * A text file that grows by whole lines. Opening it cuts off a last line that a dead writer left unfinished; a line that
 * does not fit on the disk is taken back, so the file always ends with a whole line.
 */
export class AppendFile {
  readonly path: string
  readonly #disk: RunFs
  #fd: number
  #size: number

  constructor(path: string, disk: RunFs = nodeFs) {
    this.path = path
    this.#disk = disk
    try {
      // Not O_APPEND: positions are given, so that a line taken back is written over.
      this.#fd = disk.openSync(path, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o666)
      this.#size = wholeLines(path)
      disk.ftruncateSync(this.#fd, this.#size)
    } catch (error) {
      throw fileWriteError(error, path)
    }
  }

  /** Bytes of whole lines. */
  get size(): number {
    return this.#size
  }

  /** Adds one or more whole lines; `text` ends with a line break. All of it is written, or nothing. */
  append(text: string): void {
    const data = Buffer.from(text)
    try {
      writeFully(this.#disk, this.#fd, data, this.#size)
      this.#size += data.length
    } catch (error) {
      this.truncate(this.#size)
      throw fileWriteError(error, this.path)
    }
  }

  /** Keeps the first `size` bytes. */
  truncate(size: number): void {
    try {
      this.#disk.ftruncateSync(this.#fd, size)
      this.#size = size
    } catch (error) {
      throw fileWriteError(error, this.path)
    }
  }

  /** Returns when everything appended is on the disk. */
  sync(): void {
    try {
      this.#disk.fsyncSync(this.#fd)
    } catch (error) {
      throw fileWriteError(error, this.path)
    }
  }

  close(): void {
    if (this.#fd < 0) return
    this.#disk.closeSync(this.#fd)
    this.#fd = -1
  }
}

/** The length of the file up to and including its last line break. */
export function wholeLines(path: string): number {
  const fd = fs.openSync(path, 'r')
  try {
    const chunk = Buffer.alloc(64 * 1024)
    for (let end = fs.fstatSync(fd).size; end > 0;) {
      const start = Math.max(0, end - chunk.length)
      const count = fs.readSync(fd, chunk, 0, end - start, start)
      const at = chunk.subarray(0, count).lastIndexOf(0x0a)
      if (at >= 0) return start + at + 1
      end = start
    }
    return 0
  } finally {
    fs.closeSync(fd)
  }
}
