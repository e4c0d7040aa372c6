import { ControlSocket } from '../run/controlSocket.ts'
import { RunDirectory } from '../run/runDirectory.ts'
import { parseRecipe } from '../recipe/parseRecipe.ts'
import { RunControl } from '../train/runControl.ts'
import { TrainingRun, type RunEvents } from '../train/trainingRun.ts'

/**
 * Works on the run in `dir` in this process until it ends: takes the lock, opens the control socket, trains. Ctrl-C stops it
 * after the present step and saves; a second one stops at once. SIGTERM stops at once.
 */
export async function executeRun(dir: string, events: RunEvents = {}): Promise<'finished' | 'stopped' | 'paused'> {
  const run = RunDirectory.open(dir)
  const control = new RunControl()
  const writer = await run.lock({ onLost: () => control.stop(false) })
  const answer = () => ({ state: writer.status.state, step: writer.status.step })
  const socket = await ControlSocket.open(run.dir, {
    stop: ({ save }) => {
      control.stop(save)
      return answer()
    },
    pause: () => {
      control.pause()
      return answer()
    },
    resume: () => {
      control.resume()
      return answer()
    },
    status: () => writer.status,
  })
  let interrupts = 0
  const onInterrupt = () => {
    control.stop(++interrupts === 1)
    if (interrupts === 1) process.stderr.write('\nstopping after this step and saving; press Ctrl-C again to stop at once\n')
  }
  const onTerminate = () => control.stop(false)
  process.on('SIGINT', onInterrupt)
  process.on('SIGTERM', onTerminate)
  try {
    const { recipe } = parseRecipe(run.recipe(), run.path('recipe'))
    return await new TrainingRun(writer, recipe, control, events).execute()
  } catch (error) {
    if (writer.isOwner && writer.status.state !== 'failed') writer.fail(error)
    throw error
  } finally {
    process.removeListener('SIGINT', onInterrupt)
    process.removeListener('SIGTERM', onTerminate)
    await socket.close()
    await writer.close()
  }
}
