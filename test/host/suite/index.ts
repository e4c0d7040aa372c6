import { writeFileSync } from 'node:fs'
import { inspect } from 'node:util'
import Mocha from 'mocha'

interface Result {
  readonly title: readonly string[]
  readonly passed: boolean
  readonly duration: number
  readonly error?: string
}

/** The tests of each window, in the order in which windows are opened. */
const phases: Readonly<Record<string, () => Promise<unknown>>> = {
  main: () => import('./main.ts'),
  reload: () => import('./reload.ts'),
  reloaded: () => import('./reloaded.ts'),
  untrusted: () => import('./untrusted.ts'),
}

/** Called by the editor inside its extension host. */
export async function run(): Promise<void> {
  const results: Result[] = []
  const save = (): void => writeFileSync(process.env.UNSLOTH_HOST_RESULT!, JSON.stringify(results))
  const mocha = new Mocha({ ui: 'bdd', timeout: 60_000, reporter: 'min', grep: process.env.UNSLOTH_HOST_GREP ?? '' })
  mocha.suite.emit('pre-require', globalThis, '', mocha)
  try {
    await phases[process.env.UNSLOTH_HOST_PHASE ?? 'main']!()
  } catch (error) {
    results.push({ title: ['loading the tests'], passed: false, duration: 0, error: inspect(error) })
    save()
    throw error
  }
  const failures = await new Promise<number>((resolve) => {
    mocha.run(resolve)
      .on('pass', (test) => results.push({ title: test.titlePath(), passed: true, duration: test.duration ?? 0 }))
      .on('fail', (test, error: unknown) => {
        results.push({ title: test.titlePath(), passed: false, duration: test.duration ?? 0, error: error instanceof Error ? (error.stack ?? error.message) : inspect(error) })
        console.error(test.fullTitle(), error)
      })
  })
  save()
  if (failures > 0) throw new Error(`${failures} tests failed`)
}
