import { existsSync } from 'node:fs'
import { copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { readTokenizerFiles, type TokenizerFiles } from '../data/tokenizerFiles.ts'
import type { Tokenizer } from '../data/tokenizer.ts'
import { writeFileAtomic } from '../io/atomicFile.ts'
import { isJsonObject } from '../io/jsonText.ts'
import { readJsonObject, readModelFolder } from '../io/modelFolder.ts'
import { pythonJson } from '../io/pythonJson.ts'

/** Copies the tokenizer's files of a model, as they are. */
export async function copyTokenizer(from: string, to: string): Promise<void> {
  for (const name of (await readModelFolder(from)).tokenizerFiles) await copyFile(join(from, name), join(to, name))
}

const roles = ['bos', 'eos', 'pad', 'unk'] as const

/** Tokens of roles that are others than the files say, under the keys of tokenizer_config.json. */
function changedRoles(files: TokenizerFiles, original: TokenizerFiles): Record<string, string> {
  return Object.fromEntries(
    roles.flatMap((role) => {
      const token = files.tokens[role]
      return token === undefined || token === original.tokens[role] ? [] : [[`${role}_token`, token]]
    }),
  )
}

const hasPieces = (name: string): boolean => name === 'tokenizer.model'

/**
 * Writes a tokenizer as it is used: its files, with every repair, the chat template of the recipe, the token that ends turns, and
 * padding on the left, which generation needs. One that was loaded with `fix: false` and has nothing of its own is copied.
 */
export async function writeTokenizer(tokenizer: Tokenizer, to: string): Promise<void> {
  const { folder, files, options, chatTemplates } = tokenizer
  const { tokenizerFiles } = await readModelFolder(folder)
  const original = await readTokenizerFiles(folder)
  const redefined = files.converted || JSON.stringify(files.definition) !== JSON.stringify(original.definition)
  // The pieces of SentencePiece would say something else than tokenizer.json.
  for (const name of tokenizerFiles)
    if (!(redefined && !files.converted && hasPieces(name))) await copyFile(join(folder, name), join(to, name))
  if (redefined) await writeFileAtomic(join(to, 'tokenizer.json'), JSON.stringify(files.definition, null, 2))
  const template = chatTemplates.get('default')
  const newTemplate = template !== undefined && template !== original.chatTemplates.get('default')
  const changed = changedRoles(files, original)
  if (options.fix === false && !redefined && !newTemplate && Object.keys(changed).length === 0) return
  const read = async (name: string): Promise<Record<string, unknown> | undefined> =>
    existsSync(join(to, name)) ? readJsonObject(join(to, name), { keepNumbers: true }) : undefined
  const config = await read('tokenizer_config.json')
  if (newTemplate && tokenizerFiles.some((name) => name.startsWith('chat_template.')))
    await writeFileAtomic(join(to, 'chat_template.jinja'), template)
  const inConfig = newTemplate && !tokenizerFiles.some((name) => name.startsWith('chat_template.'))
  if (config !== undefined || inConfig || Object.keys(changed).length > 0) {
    const decoder = redefined && isJsonObject(config?.added_tokens_decoder) ? { added_tokens_decoder: decoderOf(files) } : {}
    const templates = inConfig ? { chat_template: allTemplates(config?.chat_template, template) } : {}
    await writeFileAtomic(
      join(to, 'tokenizer_config.json'),
      `${pythonJson({ ...config, ...changed, ...decoder, ...templates, padding_side: 'left' })}\n`,
    )
  }
  const map = await read('special_tokens_map.json')
  if (map !== undefined && Object.keys(changed).length > 0)
    await writeFileAtomic(join(to, 'special_tokens_map.json'), `${pythonJson({ ...map, ...changed })}\n`)
}

/** Several named templates stay several. */
const allTemplates = (given: unknown, template: string): unknown =>
  !Array.isArray(given)
    ? template
    : [
        { name: 'default', template },
        ...(given as unknown[]).filter((entry) => !(isJsonObject(entry) && entry.name === 'default')),
      ]

/** Added tokens as tokenizer_config.json lists them. */
const decoderOf = ({ definition }: TokenizerFiles): Record<string, unknown> =>
  Object.fromEntries(
    definition.added_tokens.map(({ id, ...token }) => [
      String(id),
      { lstrip: false, normalized: false, rstrip: false, single_word: false, ...token },
    ]),
  )
