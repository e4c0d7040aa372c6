import { stringify } from 'yaml'
import type { Recipe } from '#shared/recipe.ts'

/**
 * The recipe as YAML with every default written out, for `--dry-run` and the frozen copy of a run: parsing it gives the
 * same recipe again.
 */
export function formatRecipe(recipe: Recipe): string {
  return stringify(recipe, {
    version: '1.2',
    lineWidth: 0,
    nullStr: 'null',
    aliasDuplicateObjects: false,
    flowCollectionPadding: false,
  })
}
