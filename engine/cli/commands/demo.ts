import { join } from 'node:path'
import { loadRecipe } from '../../recipe/loadRecipe.ts'
import { formatRecipe } from '../../recipe/formatRecipe.ts'
import { FastLanguageModel } from '../../fastLanguageModel.ts'
import { greedy } from '../../generate/sampler.ts'
import { projectRoot } from '../../projectRoot.ts'
import { RunDirectory } from '../../run/runDirectory.ts'
import type { CommandArgs } from '../commandArgs.ts'
import { progressView, shownPath } from '../progressView.ts'
import { executeRun } from '../runLauncher.ts'
import { chooseDevice } from '../../runtime/chooseDevice.ts'
import type { DeviceChoice } from '../../runtime/runtime.ts'

const prompt = 'One day a Fox'

/** Fine-tunes the bundled model on the bundled fables and shows what it writes before and after. */
export async function demoCommand({ flags }: CommandArgs<'demo'>): Promise<number> {
  const starter = join(projectRoot(), 'engine', 'starter', 'finetune.yaml')
  const { recipe } = loadRecipe({
    file: starter,
    cwd: process.cwd(),
    overrides: [
      { path: 'training.output_dir', value: flags.output_dir ?? join(process.cwd(), 'outputs'), flag: '--output_dir' },
      { path: 'training.threads', value: flags.threads, flag: '--threads' },
    ],
  })
  const run = RunDirectory.create(recipe.training.output_dir, 'demo', formatRecipe(recipe), {
    status: { model: recipe.model.name, method: 'lora' },
  })
  const view = flags.json ? undefined : progressView(process.stdout)
  if (!flags.json)
    console.log(`Fine-tuning the bundled story teller (0.26 M parameters) on Aesop's fables: ${shownPath(starter)}`)
  await executeRun(run.dir, view)
  view?.end()
  const adapter = join(run.dir, 'adapter')
  const samples = await beforeAndAfter(recipe.model.name, adapter, chooseDevice('cpu', flags.threads))
  if (flags.json) console.log(JSON.stringify({ dir: run.dir, ...samples }, null, 2))
  else {
    console.log(`\nbefore: ${prompt}${samples.before}\n\nafter:  ${prompt}${samples.after}\n`)
    console.log(`adapter: ${shownPath(adapter)}\nmerged model: ${shownPath(join(run.dir, 'merged'))}\n`)
    console.log('What to try next:')
    console.log(`  npx unsloth generate ${shownPath(run.dir)} "Once upon a time" --temperature 0.8`)
    console.log(`  npx unsloth inspect ${shownPath(adapter)}`)
    console.log(`  npx unsloth finetune ${shownPath(starter)} --max_steps 200`)
    console.log('  npx unsloth finetune --dry-run --model FOLDER --local_dataset FILE.jsonl')
  }
  return 0
}

async function beforeAndAfter(model: string, adapter: string, device: DeviceChoice): Promise<{ before: string; after: string }> {
  const generator = await FastLanguageModel.forInference({ modelName: model, adapter, device })
  try {
    const ids = generator.tokenizer.encode(prompt, { addSpecialTokens: true })
    const options = { maxNewTokens: 80, sampling: { ...greedy, repetitionPenalty: 1.15 }, stop: ['\n\n'], seed: 0 }
    const [before] = await generator.complete([ids], { ...options, base: true })
    const [after] = await generator.complete([ids], options)
    return { before: before!.text, after: after!.text }
  } finally {
    generator.dispose()
  }
}
