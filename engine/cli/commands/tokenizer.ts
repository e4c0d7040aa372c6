import { examineTokenizer, type TokenizerFinding } from '../../data/tokenizerDoctor.ts'
import { resolveModel } from '../../runtime/resolveModel.ts'
import type { CommandArgs } from '../commandArgs.ts'

const marks: Readonly<Record<TokenizerFinding['level'], string>> = { ok: '✓', info: '·', warning: '!', error: '✗' }

/** Examines the tokenizer of a model; exit code 1 when it cannot be used. */
export async function tokenizerCommand({ positionals, flags }: CommandArgs<'tokenizer'>): Promise<number> {
  const { folder } = await resolveModel(positionals[0]!)
  const report = await examineTokenizer(folder)
  if (flags.json) console.log(JSON.stringify(report, null, 2))
  else for (const { check, level, found, changed } of report.findings) {
    console.log(`${marks[level]} ${check.padEnd(12)} ${found}`)
    if (changed !== undefined) console.log(`  ${' '.repeat(12)} changed: ${changed}`)
  }
  return report.findings.some(({ level }) => level === 'error') ? 1 : 0
}
