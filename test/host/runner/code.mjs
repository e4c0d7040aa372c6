#!/usr/bin/env node
// Stands in for VS Code's own executable, with its flags, as @vscode/test-electron calls it: on the desktop route it starts that with
// a screen where there is none; else it runs the tests in code-server. UNSLOTH_HOST_TRUST=1: workspaces have to be trusted.
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { Host } from './host.mjs'

const { kind, command } = JSON.parse(process.env.UNSLOTH_HOST_EDITOR)
const trust = process.env.UNSLOTH_HOST_TRUST === '1'
const timeout = Number(process.env.UNSLOTH_HOST_TIMEOUT ?? 900_000)
const given = process.argv.slice(2)
const flag = (name) => given.find((arg) => arg.startsWith(`--${name}=`))?.slice(name.length + 3)
const opened = given.find((arg) => !arg.startsWith('-'))

/** Resolves to the exit status of the editor. */
async function runDesktop() {
  const env = { ...process.env }
  // The editor of somebody who runs the tests in its terminal is not this one.
  for (const name of Object.keys(env)) if (/^VSCODE_|^ELECTRON_RUN_AS_NODE$|^NODE_OPTIONS$/.test(name)) delete env[name]
  const args = [...command.slice(1), ...given.filter((arg) => !(trust && arg === '--disable-workspace-trust'))]
  const child = spawn(command[0], args, { env, stdio: 'inherit', detached: true })
  const end = (signal) => {
    try {
      process.kill(-child.pid, signal)
    } catch {
      // It has gone.
    }
  }
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => end(signal))
  const timer = setTimeout(() => end('SIGKILL'), timeout)
  const status = await new Promise((settle, reject) => child.once('error', reject).once('exit', (code) => settle(code ?? 98)))
  clearTimeout(timer)
  return status
}

async function runCodeServer() {
  const host = await Host.start({ trust, profile: flag('user-data-dir'), extensions: flag('extensions-dir') })
  const stop = () => void host.stop().then(() => process.exit(99))
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, stop)
  try {
    const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => name.startsWith('UNSLOTH_HOST_')))
    const { code, lines } = await host.runTests({
      opened: resolve(opened),
      extension: flag('extensionDevelopmentPath'),
      tests: flag('extensionTestsPath'),
      env,
      timeout,
    })
    if (!existsSync(process.env.UNSLOTH_HOST_RESULT)) console.error(lines.slice(-40).join('\n'))
    return code === 'timeout' ? 98 : Number(code)
  } finally {
    await host.stop()
  }
}

process.exitCode = kind === 'desktop' ? await runDesktop() : await runCodeServer()
