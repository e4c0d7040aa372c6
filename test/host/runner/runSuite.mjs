import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { chooseEditor } from './editor.mjs'
import { quietSettings } from './host.mjs'

let editor

/**
 * Opens a folder or a .code-workspace in a VS Code of its own, with an empty profile, and runs test modules inside its extension
 * host; each but the first one after the window has been loaded again. Resolves to what the tests said.
 */
export async function runSuite({ opened, extension, tests, phases, env = {}, trust = false, settings = {}, timeout = 900_000 }) {
  const { runTests } = createRequire(import.meta.url)('@vscode/test-electron')
  editor ??= await chooseEditor()
  const folder = mkdtempSync(join(tmpdir(), 'unsloth-suite-'))
  const profile = join(folder, 'profile')
  const result = join(folder, 'result.json')
  mkdirSync(join(profile, 'User'), { recursive: true })
  writeFileSync(join(profile, 'User', 'settings.json'), JSON.stringify({ ...quietSettings(trust), ...settings }))
  let failure
  try {
    await runTests({
      vscodeExecutablePath: fileURLToPath(new URL('code.mjs', import.meta.url)),
      extensionDevelopmentPath: extension,
      extensionTestsPath: tests,
      launchArgs: [opened, `--user-data-dir=${profile}`, `--extensions-dir=${join(folder, 'extensions')}`],
      extensionTestsEnv: {
        ...env,
        UNSLOTH_HOST_PHASES: phases.join(),
        UNSLOTH_HOST_RESULT: result,
        UNSLOTH_HOST_EDITOR: JSON.stringify(editor),
        UNSLOTH_HOST_TRUST: trust ? '1' : '0',
        UNSLOTH_HOST_TIMEOUT: String(timeout),
      },
    }).catch((error) => (failure = error))
    if (!existsSync(result))
      throw new Error(`The tests in VS Code (${phases.join()}) ended without a result: ${failure?.message ?? 'status 0'}`)
    const results = JSON.parse(readFileSync(result, 'utf8'))
    const ended = results.length > 0 ? results.at(-1).phase : undefined
    if (failure !== undefined && results.every(({ passed }) => passed))
      throw new Error(`The tests in VS Code (${phases.join()}) ended early: ${failure.message}`)
    if (failure === undefined && ended !== phases.at(-1))
      throw new Error(`The window for ${phases.at(-1)} did not come; the last one was ${ended}.`)
    return results
  } finally {
    rmSync(folder, { recursive: true, force: true, maxRetries: 5 })
  }
}
