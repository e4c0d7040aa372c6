import { acquireDevice } from '../../../../engine/run/deviceQueue.ts'

/** Takes the device and holds it until killed. */
async function main(): Promise<void> {
  await acquireDevice(process.argv[2]!, 'holder')
  console.log('held')
  setTimeout(() => undefined, 30_000)
}

void main()
