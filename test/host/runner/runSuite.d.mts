export interface HostTestResult {
  /** The test module that it belongs to. */
  readonly phase: string
  readonly title: readonly string[]
  readonly passed: boolean
  readonly duration: number
  readonly error?: string
}

export declare function runSuite(options: {
  readonly opened: string
  readonly extension: string
  readonly tests: string
  readonly phases: readonly string[]
  readonly env?: Readonly<Record<string, string>>
  readonly trust?: boolean
  readonly settings?: Readonly<Record<string, unknown>>
  readonly timeout?: number
}): Promise<readonly HostTestResult[]>
