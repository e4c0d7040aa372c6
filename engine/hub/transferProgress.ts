import { formatBytes, formatDuration } from '#shared/units.ts'

/** How far the files of a repository are. */
export interface HubProgress {
  readonly repository: string
  /** Of what is fetched; what the cache has is not counted. */
  readonly bytes: number
  readonly totalBytes: number
  readonly filesDone: number
  readonly files: number
  /** Over the last seconds. */
  readonly bytesPerSecond: number
  /** Undefined until a rate is known. */
  readonly etaSeconds: number | undefined
  /** Why nothing is coming at the moment. */
  readonly waiting: string | undefined
}

/** One line for people: "fetching org/model: 1.2 GB of 2.5 GB, 84.0 MB/s, 16 s left". */
export function describeProgress({ repository, bytes, totalBytes, bytesPerSecond, etaSeconds, waiting }: HubProgress): string {
  const rate = bytesPerSecond > 0 ? `, ${formatBytes(bytesPerSecond)}/s` : ''
  const left = etaSeconds === undefined || bytes >= totalBytes ? '' : `, ${formatDuration(etaSeconds)} left`
  return `fetching ${repository}: ${formatBytes(bytes)} of ${formatBytes(totalBytes)}${waiting === undefined ? `${rate}${left}` : ` (${waiting})`}`
}

/** The rate is taken over so many milliseconds. */
const rateWindow = 5000
/** Milliseconds between two reports. */
const reportInterval = 250

/** Adds up the bytes of several files at once and reports them a few times a second. */
export class TransferProgress {
  private readonly repository: string
  private readonly report: ((progress: HubProgress) => void) | undefined
  private readonly now: () => number
  private readonly files = new Map<string, { size: number; bytes: number; done: boolean }>()
  private readonly samples: { time: number; received: number }[] = []
  private received = 0
  private lastReport = -Infinity
  private waiting: string | undefined

  constructor(
    repository: string,
    report: ((progress: HubProgress) => void) | undefined,
    now: () => number = () => performance.now(),
  ) {
    this.repository = repository
    this.report = report
    this.now = now
  }

  add(path: string, size: number): void {
    this.files.set(path, { size, bytes: 0, done: false })
  }

  /** `bytes` of a file are there. The first call may tell of bytes from an earlier attempt, which are no part of the rate. */
  bytes(path: string, bytes: number): void {
    const file = this.files.get(path)
    if (file === undefined) return
    if (this.samples.length === 0) this.samples.push({ time: this.now(), received: this.received })
    else this.received += Math.max(0, bytes - file.bytes)
    file.bytes = bytes
    this.waiting = undefined
    if (this.now() - this.lastReport >= reportInterval) this.tell()
  }

  done(path: string): void {
    const file = this.files.get(path)
    if (file === undefined) return
    Object.assign(file, { bytes: file.size, done: true })
    this.waiting = undefined
    if ([...this.files.values()].every(({ done }) => done)) this.tell()
  }

  wait(reason: string): void {
    if (reason === this.waiting) return
    this.waiting = reason
    this.tell()
  }

  private tell(): void {
    const time = this.now()
    this.lastReport = time
    this.samples.push({ time, received: this.received })
    while (this.samples.length > 2 && time - this.samples[0]!.time > rateWindow) this.samples.shift()
    const first = this.samples[0]!
    const bytesPerSecond = time > first.time ? ((this.received - first.received) / (time - first.time)) * 1000 : 0
    const all = [...this.files.values()]
    const sum = (key: 'size' | 'bytes') => all.reduce((total, file) => total + file[key], 0)
    const [bytes, totalBytes] = [sum('bytes'), sum('size')]
    this.report?.({
      repository: this.repository,
      bytes,
      totalBytes,
      filesDone: all.filter(({ done }) => done).length,
      files: all.length,
      bytesPerSecond,
      etaSeconds: bytesPerSecond > 0 ? (totalBytes - bytes) / bytesPerSecond : undefined,
      waiting: this.waiting,
    })
  }
}
