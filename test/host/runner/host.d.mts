import type { Page } from 'playwright-core'

export interface HostTestResult {
  readonly title: readonly string[]
  readonly passed: boolean
  readonly duration: number
  readonly error?: string
}

export interface HostOptions {
  readonly trust?: boolean
  readonly vsix?: string
  readonly settings?: Readonly<Record<string, unknown>>
  readonly viewport?: { readonly width: number; readonly height: number }
}

export interface HostRun {
  readonly workspace: string
  readonly extension: string
  readonly tests: string
  readonly env?: Readonly<Record<string, string>>
  readonly page?: Page
  readonly timeout?: number
  readonly during?: (page: Page) => Promise<void>
}

export declare class Host {
  static start(options?: HostOptions): Promise<Host>
  readonly port: number
  readonly dataFolder: string
  makeFolder(name: string): string
  open(workspace: string): Promise<Page>
  runTests(run: HostRun): Promise<{ readonly page: Page; readonly code: unknown; readonly lines: readonly string[]; readonly results: readonly HostTestResult[] }>
  stop(): Promise<void>
}
