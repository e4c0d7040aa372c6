import type { Page } from 'playwright-core'

export interface HostOptions {
  readonly trust?: boolean
  readonly vsix?: string
  readonly settings?: Readonly<Record<string, unknown>>
  readonly viewport?: { readonly width: number; readonly height: number }
}

export declare class Host {
  static start(options?: HostOptions): Promise<Host>
  readonly port: number
  makeFolder(name: string): string
  open(workspace: string): Promise<Page>
  stop(): Promise<void>
}
