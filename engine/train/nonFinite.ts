import { commandSignatures } from '../graph/commands.ts'
import type { PackedTokens, StepRunner } from '../runtime/stepRunner.ts'

/**
 * Replays the forward pass one command at a time and names the first matrix that comes out with a NaN or infinity. Slow: for the
 * one time that a loss is not finite.
 */
export async function firstNonFinite(
  runner: StepRunner,
  tokens: PackedTokens,
  random: { seed: number; step: number },
): Promise<string | undefined> {
  const { plan, forwardCommands } = runner.step
  for (let at = 0; at < forwardCommands; ++at) {
    const command = plan.commands[at]!
    await runner.runCommands(tokens, random, at, at + 1)
    for (const output of command.tensors.slice(0, commandSignatures[command.name].outputs)) {
      if (output === undefined || !['f32', 'bf16', 'f16'].includes(output.storage.dtype)) continue
      if (runner.readActivation(output.storage, tokens, command.tile).some((value) => !Number.isFinite(value)))
        return output.storage.name
    }
  }
  return undefined
}
