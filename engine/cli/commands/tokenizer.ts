import { UnslothError } from '#shared/errors.ts'
import { examineTokenizer, type TokenizerFinding } from '../../data/tokenizerDoctor.ts'
import { addTokens } from '../../save/addTokens.ts'
import { resolveModel } from '../../runtime/resolveModel.ts'
import type { CommandArgs } from '../commandArgs.ts'

const marks: Readonly<Record<TokenizerFinding['level'], string>> = { ok: '✓', info: '·', warning: '!', error: '✗' }

/** Examines the tokenizer of a model; exit code 1 when it cannot be used. */
export async function tokenizerCommand({ positionals, flags }: CommandArgs<'tokenizer'>): Promise<number> {
  const { folder } = await resolveModel(positionals[0]!)
  if (flags.add_tokens !== undefined) return addTokensCommand(folder, flags)
  const report = await examineTokenizer(folder)
  if (flags.json) console.log(JSON.stringify(report, null, 2))
  else
    for (const { check, level, found, changed } of report.findings) {
      console.log(`${marks[level]} ${check.padEnd(12)} ${found}`)
      if (changed !== undefined) console.log(`  ${' '.repeat(12)} changed: ${changed}`)
    }
  return report.findings.some(({ level }) => level === 'error') ? 1 : 0
}

/** Writes the model with more tokens. */
async function addTokensCommand(
  folder: string,
  { add_tokens: tokens = '', output, interpolation, multiple_of: multipleOf, json }: CommandArgs<'tokenizer'>['flags'],
): Promise<number> {
  if (output === undefined)
    throw new UnslothError('USAGE', '--add_tokens writes a new model and needs a folder for it.', {
      hint: 'Name one: --output DIR.',
    })
  const result = await addTokens(folder, output, {
    tokens: tokens.split(/\s+/).filter((token) => token !== ''),
    multipleOf,
    ...(interpolation !== undefined && { method: 'interpolation' as const, interpolation }),
  })
  if (json) console.log(JSON.stringify({ folder: output, ...result }, null, 2))
  else {
    for (const { token, id } of result.added) console.log(`added ${token} as ${id}`)
    console.log(
      `saved ${output}: ${result.matrices.join(' and ')} ${result.rows === result.rowsBefore ? `keep their ${result.rows} rows` : `have ${result.rows} rows instead of ${result.rowsBefore}`}`,
    )
    console.log('Train the new rows: lora.modules_to_save: [embed_tokens, lm_head].')
  }
  return 0
}
