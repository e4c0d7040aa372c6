// An engine of few words for tests of its client: answers initialize and doctor, dies when asked to plan.
import { Buffer } from 'node:buffer'
import process from 'node:process'

if (process.env.FAKE_ENGINE === 'broken') {
  console.error('Error: Cannot find module kernels.node')
  process.exit(3)
}
const send = (message) => {
  const text = JSON.stringify({ jsonrpc: '2.0', ...message })
  process.stdout.write(`Content-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`)
}
let buffer = Buffer.alloc(0)
process.stdin.on('data', (chunk) => {
  buffer = Buffer.concat([buffer, chunk])
  for (;;) {
    const head = buffer.indexOf('\r\n\r\n')
    if (head < 0) return
    const length = Number(/Content-Length: (\d+)/.exec(buffer.toString('latin1', 0, head))[1])
    if (buffer.length < head + 4 + length) return
    const { id, method } = JSON.parse(buffer.toString('utf8', head + 4, head + 4 + length))
    buffer = buffer.subarray(head + 4 + length)
    if (method === 'initialize')
      send({
        id,
        result: { protocolVersion: 1, engineVersion: '0', pid: process.pid, platform: 'linux', arch: 'x64', methods: [] },
      })
    else if (method === 'engine/plan') {
      console.error('about to die')
      process.exit(7)
    } else if (method === 'engine/devices')
      send({ id, result: { devices: [{ id: 'cpu', label: process.env.HF_TOKEN ?? '', totalBytes: 2 }] } })
    else send({ id, result: { checks: [] } })
  }
})
process.stdin.on('end', () => process.exit(0))
