import { fill } from '#shared/panelStrings.ts'
import { translated, type Said } from '#shared/recipe.ts'

let translations: Readonly<Record<string, string>> = {}

/** Sets the editor's translations, by the English texts; without them everything is said in English. */
export function useTranslations(texts: Readonly<Record<string, string>>): void {
  translations = texts
}

/** A text in the editor's language; {0}, {1} stand for values. Literal texts are collected by tools/l10n.mjs. */
export const t = (text: string, ...values: readonly (string | number)[]): string => fill(translations[text] ?? text, ...values)

/** A problem of the recipe's schema in the editor's language. */
export const inWords = (said: Partial<Said> & Pick<Said, 'message'>): string => translated(said, translations)
