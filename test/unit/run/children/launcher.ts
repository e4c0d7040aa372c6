import { launchRun } from '../../../../engine/run/detached.ts'

/** Starts a run and is gone at once, as an editor that is closed. */
async function main(): Promise<void> {
  const [entry, dir] = process.argv.slice(2)
  const { pid } = await launchRun(dir!, { entry: entry! })
  console.log(pid)
}

void main()
