import { copyFileSync, cpSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { starterRecipe } from '../../src/recipes/starter.ts'

const root = new URL('../..', import.meta.url).pathname

/** Fills a folder with what a user might have: recipes, a model, data sets. */
export function fillWorkspace(folder: string): void {
  const starter = join(root, 'engine', 'starter')
  cpSync(join(starter, 'model'), join(folder, 'models', 'tiny'), { recursive: true })
  copyFileSync(join(starter, 'fables.jsonl'), join(folder, 'fables.jsonl'))
  mkdirSync(join(folder, 'data'), { recursive: true })
  writeFileSync(join(folder, 'finetune.yaml'), starterRecipe('./fables.jsonl'))
  writeFileSync(
    join(folder, 'long.finetune.yaml'),
    starterRecipe('./fables.jsonl')
      .replace('max_steps: 80', 'max_steps: 20000')
      .replace('save_steps: 20 ', 'save_steps: 5 ')
      .replace('eval_steps: 20', 'eval_steps: 0'),
  )
  writeFileSync(
    join(folder, 'data', 'chat.jsonl'),
    ['Hi', 'Ho']
      .map((content) =>
        JSON.stringify({
          messages: [
            { role: 'user', content },
            { role: 'assistant', content: 'Hello.' },
          ],
        }),
      )
      .join('\n'),
  )
  writeFileSync(join(folder, 'data', 'table.csv'), 'question,answer\n"What, me?",yes\nWho,"no\nbody"\n')
}
