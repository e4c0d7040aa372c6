import * as fs from 'node:fs'
import * as path from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import type { Recipe, RecipeOverride } from '#shared/recipe.ts'
import { describeIssue, readRecipe, recipeFromFlags } from './parseRecipe.ts'
import { resolveOverridePaths, resolveRecipePaths } from './recipePaths.ts'

export interface RecipeRequest {
  /** Path of the recipe; null when only flags were given. */
  readonly file: string | null
  readonly overrides: readonly RecipeOverride[]
  /** Folder that relative paths of flags, and `file`, are relative to. */
  readonly cwd: string
}

export interface LoadedRecipe {
  /** With absolute paths. */
  readonly recipe: Recipe
  /** One line each, with file, line and column. */
  readonly warnings: readonly string[]
  /** The file it came from, absolute; null when it was made of flags alone. */
  readonly file: string | null
}

const usualNames = ['finetune.yaml', 'finetune.yml']

/**
 * The recipe of a command line: the file with flags laid over it, or flags alone. With neither a file nor a model among
 * the flags, `finetune.yaml` of the current folder is taken.
 */
export function loadRecipe({ file, overrides, cwd }: RecipeRequest): LoadedRecipe {
  const flags = resolveOverridePaths(overrides, cwd)
  const alone = file === null && flags.some((flag) => flag.path === 'model.name')
  const found = alone ? null : (file ?? usualNames.find((name) => fs.existsSync(path.join(cwd, name))) ?? null)
  if (found === null) {
    if (!alone) {
      throw new UnslothError('USAGE', 'there is no recipe: name a file, or a model and a data set', {
        hint: 'unsloth finetune finetune.yaml, or unsloth finetune --model NAME --local_dataset FILE',
      })
    }
    const { recipe, warnings } = recipeFromFlags(flags)
    return {
      recipe: resolveRecipePaths(recipe, cwd),
      warnings: warnings.map((issue) => describeIssue(issue, 'command line')),
      file: null,
    }
  }
  const full = path.resolve(cwd, found)
  // Errors show the path as it was typed, where that is the same file.
  const shown = path.resolve(found) === full ? found : full
  const { recipe, warnings } = readRecipe(shown, { overrides: flags })
  return {
    recipe: resolveRecipePaths(recipe, path.dirname(full)),
    warnings: warnings.map((issue) => describeIssue(issue, shown)),
    file: full,
  }
}
