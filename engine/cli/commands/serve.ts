import type { InspectResult } from '#shared/protocol.ts'
import { engineHandlers } from '../../rpc/handlers.ts'
import { serve, stdioTransport } from '../../rpc/serve.ts'
import { doctor, programVersion } from '../doctor.ts'
import { inspectPath } from '../inspect.ts'

/** Answers an editor until it hangs up. */
export async function serveCommand(): Promise<number> {
  await serve(stdioTransport(), engineHandlers({ inspect, doctor }), { engineVersion: programVersion() })
  return 0
}

/** The report of the inspect command, as the protocol has it. */
async function inspect(path: string, limit: number): Promise<InspectResult> {
  const { kind, bytes, parameters, tensors, metadata, facts } = await inspectPath(path)
  return {
    kind,
    path,
    bytes,
    parameters: parameters.total,
    tensorCount: tensors.length,
    tensors: tensors.slice(0, limit),
    metadata,
    facts: Object.entries(facts).map(([label, value]) => ({ label, value: String(value) })),
  }
}
