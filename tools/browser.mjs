import { findProgram } from './common.mjs'
import { canInstall, installCommand, installDebian } from './debian.mjs'

/** The browser that tests drive: UNSLOTH_CHROMIUM, or Chromium or Chrome on the PATH. */
export const findBrowser = () =>
  findProgram(process.env.UNSLOTH_CHROMIUM ?? 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')

/** Undefined when there is a browser (root gets one installed), else what to do. */
export function missingBrowser() {
  if (findBrowser() === undefined && canInstall()) installDebian(['chromium'])
  return findBrowser() === undefined ? `there is no Chromium: ${installCommand(['chromium'])}` : undefined
}
