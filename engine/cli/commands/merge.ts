import { UnslothError } from '#shared/errors.ts'
import { FastLanguageModel } from '../../fastLanguageModel.ts'
import { saveMerged } from '../../save/saveMerged.ts'
import type { CommandArgs } from '../commandArgs.ts'
import { shownPath } from '../progressView.ts'
import { runResult } from '../runResult.ts'
import { chooseDevice } from '../../runtime/chooseDevice.ts'

/** Texts on which the merged model is compared with the one that it is made from. */
const probes = [
  'Once upon a time there was',
  'The quick brown fox jumps over the lazy dog. 0123456789',
  'def main(args):\n    return 0\n',
]

/** Writes an adapter and its base as one model in 16 bits; refused when its logits are not those of the two. */
export async function mergeCommand({ positionals, flags }: CommandArgs<'merge'>): Promise<number> {
  const [source, folder] = positionals as [string, string]
  const generator = await FastLanguageModel.forInference({
    modelName: runResult(source),
    device: chooseDevice(flags.device, flags.threads),
  })
  try {
    if (generator.model.patched.training.kind !== 'lora')
      throw new UnslothError('USAGE', `${source} is a whole model already: there is no adapter to merge.`, {
        hint: 'Name an adapter folder, or a run that trained one.',
      })
    const ids = probes
      .map((text) => generator.tokenizer.encode(text, { addSpecialTokens: true }))
      .filter(({ length }) => length > 0)
    const check = await saveMerged(generator.model, folder, {
      maxShardSize: flags.max_shard_size,
      probes: ids,
      tokenizer: generator.tokenizer,
    })
    console.log(
      flags.json
        ? JSON.stringify({ folder, difference: check.error, allowed: check.allowed })
        : `saved ${shownPath(folder)}; its logits differ by ${check.error.toExponential(1)}, ${check.allowed.toExponential(0)} is allowed`,
    )
    return 0
  } finally {
    generator.dispose()
  }
}
