import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { inspect } from 'node:util'
import Mocha from 'mocha'
import * as vscode from 'vscode'
import type { HostTestResult } from '../runner/runSuite.mjs'

/** The tests of each window. */
const phases: Readonly<Record<string, () => Promise<unknown>>> = {
  main: async () => {
    await import('./main.ts')
    await import('./preview.ts')
    await import('./hub.ts')
  },
  reload: () => import('./reload.ts'),
  reloaded: () => import('./reloaded.ts'),
  untrusted: () => import('./untrusted.ts'),
  roots: () => import('./roots.ts'),
  badThings: () => import('./badThings.ts'),
  starter: () => import('./starter.ts'),
  watcher: () => import('./watcher.ts'),
}

/**
 * Called by the editor inside its extension host. UNSLOTH_HOST_PHASES names the modules to run, each in a window of its own: after
 * one, the window is loaded again, and this is called anew.
 */
export async function run(): Promise<void> {
  const path = process.env.UNSLOTH_HOST_RESULT!
  const wanted = process.env.UNSLOTH_HOST_PHASES!.split(',')
  const results = existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as HostTestResult[]) : []
  const done = new Set(results.map(({ phase }) => phase))
  const phase = wanted.find((name) => !done.has(name))!
  const save = (): void => writeFileSync(path, JSON.stringify(results))
  const mocha = new Mocha({ ui: 'bdd', timeout: 300_000, reporter: 'min', grep: process.env.UNSLOTH_HOST_GREP ?? '' })
  mocha.suite.emit('pre-require', globalThis, '', mocha)
  try {
    await phases[phase]!()
  } catch (error) {
    results.push({ phase, title: ['loading the tests'], passed: false, duration: 0, error: inspect(error) })
    save()
    throw error
  }
  const failures = await new Promise<number>((resolve) => {
    mocha
      .run(resolve)
      .on('pass', (test) => results.push({ phase, title: test.titlePath(), passed: true, duration: test.duration ?? 0 }))
      .on('fail', (test, error: unknown) => {
        results.push({
          phase,
          title: test.titlePath(),
          passed: false,
          duration: test.duration ?? 0,
          error: error instanceof Error ? (error.stack ?? error.message) : inspect(error),
        })
        console.error(test.fullTitle(), error)
      })
  })
  save()
  if (failures > 0) throw new Error(`${failures} tests failed`)
  if (phase === wanted.at(-1)) return
  await vscode.commands.executeCommand('workbench.action.reloadWindow')
  // This extension host ends with its window.
  await new Promise(() => undefined)
}
