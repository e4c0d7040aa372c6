import { quote } from '../io/printable.ts'
import { readJsonObject } from '../io/modelFolder.ts'
import { formatCount } from '#shared/units.ts'
import { ChatTemplate } from './chatTemplate.ts'
import { tokenMatrices, untrainedTokens } from './embeddingRows.ts'
import { choosePadToken, padProblem } from './tokenizerRepair.ts'
import { examineTemplate } from './templateRepair.ts'
import { loadTokenizer, type Tokenizer } from './tokenizer.ts'
import { join } from 'node:path'

/** One thing that was looked at. */
export interface TokenizerFinding {
  readonly check: 'vocabulary' | 'names' | 'slow form' | 'pad' | 'bos' | 'eos' | 'template' | 'untrained' | 'padding side'
  readonly level: 'ok' | 'info' | 'warning' | 'error'
  readonly found: string
  /** What is done about it when the tokenizer is loaded; absent when nothing is. */
  readonly changed?: string
}

export interface TokenizerReport {
  readonly folder: string
  readonly findings: readonly TokenizerFinding[]
  /** The token that pads, after the repair. */
  readonly padToken: string | undefined
}

function padFinding(
  tokenizer: Tokenizer,
  plain: Tokenizer,
  added: readonly string[],
  rows: number,
  configured: number | undefined,
  fix: boolean,
): { finding: TokenizerFinding; token: string | undefined } {
  const { padId, padToken, eosId } = plain
  const problem = padProblem({ id: padId, token: padToken }, eosId, rows)
  if (problem === undefined)
    return { finding: { check: 'pad', level: 'ok', found: `${quote(padToken ?? '')} (${padId}) pads` }, token: padToken }
  const chosen =
    tokenizer.padToken !== padToken
      ? tokenizer.padToken!
      : choosePadToken(tokenizer, added, { rows, configured, template: plain.chatTemplates.get('default') })
  const known = plain.idOf(chosen) !== undefined
  // A new token needs a row of its own.
  const full = !known && rows <= plain.vocabSize
  const how = known ? `${quote(chosen)} (${tokenizer.idOf(chosen)}) is taken` : `${quote(chosen)} is to be added`
  const found = `${problem}; samples are never padded here, so training is not affected`
  return {
    finding: {
      check: 'pad',
      level: 'warning',
      found: full ? `${found}, and no row of the embedding is free for a token that pads` : found,
      ...(fix && !full && { changed: how }),
    },
    token: fix && !full ? chosen : padToken,
  }
}

function bosFinding(tokenizer: Tokenizer): TokenizerFinding {
  const { bosToken, addsBos, chatTemplates } = tokenizer
  const source = chatTemplates.get('default')
  if (bosToken === undefined) return { check: 'bos', level: 'ok', found: 'there is no BOS token' }
  const inTemplate = source !== undefined && rendersBos(source, tokenizer)
  if (addsBos && inTemplate)
    return {
      check: 'bos',
      level: 'info',
      found: `the tokenizer puts ${quote(bosToken)} before every text, and the chat template does, too`,
      changed: 'only one of them is kept',
    }
  return {
    check: 'bos',
    level: 'ok',
    found:
      `${quote(bosToken)} is put before ` +
      (addsBos ? 'every text' : inTemplate ? 'conversations by the template' : 'nothing by itself'),
  }
}

function rendersBos(source: string, tokenizer: Tokenizer): boolean {
  try {
    return new ChatTemplate(source, { name: 'the chat template', tokens: tokenizer })
      .render([{ role: 'user', content: 'a' }])
      .startsWith(tokenizer.bosToken ?? '\0')
  } catch {
    return false
  }
}

function templateFinding(tokenizer: Tokenizer, fix: boolean): TokenizerFinding {
  const source = tokenizer.originalTemplate ?? tokenizer.chatTemplates.get('default')
  if (source === undefined)
    return {
      check: 'template',
      level: 'info',
      found: 'there is no chat template: a base model; conversations need data.chat_template',
    }
  const { prompts, repaired, prompt, failure } = examineTemplate(source, tokenizer)
  if (failure !== undefined)
    return { check: 'template', level: 'warning', found: `the chat template cannot render a question and an answer: ${failure}` }
  if (prompts) return { check: 'template', level: 'ok', found: 'the chat template introduces answers' }
  const found = 'the chat template ignores add_generation_prompt: the model would go on with the question instead of answering'
  if (repaired === undefined)
    return { check: 'template', level: 'warning', found: `${found}; what introduces an answer could not be found` }
  return { check: 'template', level: 'warning', found, ...(fix && { changed: `${JSON.stringify(prompt)} is written for it` }) }
}

async function untrainedFinding(tokenizer: Tokenizer, ids: readonly number[]): Promise<TokenizerFinding> {
  const untrained = await untrainedTokens(tokenizer.folder, ids)
  if (untrained.length === 0) return { check: 'untrained', level: 'ok', found: 'every special token has a trained row' }
  const template = tokenizer.chatTemplates.get('default') ?? ''
  const names = untrained.map((id) => tokenizer.tokenOf(id) ?? String(id))
  const used = names.filter((name) => template.includes(name))
  const some = (all: readonly string[]): string =>
    `${all
      .slice(0, 4)
      .map((name) => quote(name))
      .join(', ')}${all.length > 4 ? ` and ${formatCount(all.length - 4)} more` : ''}`
  return used.length > 0
    ? {
        check: 'untrained',
        level: 'warning',
        found:
          `the chat template uses ${some(used)}, whose embeddings were never trained: ` +
          'add embed_tokens and lm_head to lora.modules_to_save',
      }
    : {
        check: 'untrained',
        level: 'info',
        found:
          `${formatCount(untrained.length)} special tokens were never trained: ${some(names)}; ` +
          'the chat template does not use them',
      }
}

/** Examines the tokenizer of a model folder. `fix: false` reports without changing anything. */
export async function examineTokenizer(folder: string, { fix = true } = {}): Promise<TokenizerReport> {
  const tokenizer = await loadTokenizer(folder, { fix })
  const plain = await loadTokenizer(folder, { fix: false }).catch(() => tokenizer)
  const { embedding } = await tokenMatrices(folder)
  const config = await readJsonObject(join(folder, 'config.json')).catch(() => undefined)
  const settings = await readJsonObject(join(folder, 'tokenizer_config.json')).catch(() => undefined)
  const rows = embedding?.rows ?? (typeof config?.vocab_size === 'number' ? config.vocab_size : Infinity)
  const special = [...tokenizer.specialIds].sort((a, b) => a - b)
  const added = special.flatMap((id) => tokenizer.tokenOf(id) ?? [])
  const beyond = tokenizer.vocabSize > rows
  const pad = padFinding(
    tokenizer,
    plain,
    added,
    rows,
    typeof config?.pad_token_id === 'number' ? config.pad_token_id : undefined,
    fix,
  )
  const side = settings?.padding_side
  const findings: TokenizerFinding[] = [
    beyond
      ? {
          check: 'vocabulary',
          level: 'error',
          found:
            `the token ${quote(tokenizer.tokenOf(tokenizer.vocabSize - 1) ?? '')} has the id ${tokenizer.vocabSize - 1}, ` +
            `but the embedding has only ${formatCount(rows)} rows`,
        }
      : {
          check: 'vocabulary',
          level: 'ok',
          found:
            `${formatCount(tokenizer.vocabSize)} tokens` +
            (Number.isFinite(rows) ? `, ${formatCount(rows)} rows in the embedding` : ''),
        },
    ...tokenizer.repairs.flatMap(({ check, found, changed }): TokenizerFinding[] =>
      check === 'pad' || check === 'template' ? [] : [{ check, level: 'warning', found, changed }],
    ),
    pad.finding,
    bosFinding(tokenizer),
    tokenizer.eosId === undefined
      ? { check: 'eos', level: 'warning', found: 'there is no EOS token: the model will not learn where an answer ends' }
      : {
          check: 'eos',
          level: 'ok',
          found:
            tokenizer.eosIds.map((id) => quote(tokenizer.tokenOf(id) ?? '')).join(', ') +
            (tokenizer.eosIds.length === 1 ? ' ends a text' : ' end a text'),
        },
    templateFinding(tokenizer, fix),
    ...(embedding === undefined ? [] : [await untrainedFinding(tokenizer, special)]),
    {
      check: 'padding side',
      level: 'ok',
      found: `${typeof side === 'string' ? side : 'not given'}; it matters only to programs that pad`,
    },
  ]
  return { folder, findings, padToken: pad.token }
}

/** How many samples at each end are searched for tokens. */
const looked = 250

/** Tokens of the data whose rows were never trained, other than those of roles, with how often the data use them. */
export async function untrainedInUse(
  tokenizer: Tokenizer,
  samples: readonly { readonly ids: Int32Array }[],
): Promise<Map<number, number>> {
  const counts = new Map<number, number>()
  const added = new Set(tokenizer.files.definition.added_tokens.map(({ id }) => id))
  const roles = new Set([tokenizer.bosId, tokenizer.eosId, tokenizer.padId])
  const ends = samples.length <= 2 * looked ? samples : [...samples.slice(0, looked), ...samples.slice(-looked)]
  for (const sample of ends)
    for (const id of sample.ids) if (added.has(id) && !roles.has(id)) counts.set(id, (counts.get(id) ?? 0) + 1)
  const untrained = await untrainedTokens(tokenizer.options.modelFolder ?? tokenizer.folder, [...counts.keys()])
  return new Map(untrained.map((id) => [id, counts.get(id)!]))
}

/** Warnings about a tokenizer together with what it is used on. `untrained`: see untrainedInUse. */
export function tokenizerWarnings(
  tokenizer: Tokenizer,
  untrained: ReadonlyMap<number, number>,
  trainsEmbeddings: boolean,
): string[] {
  const warnings: string[] = tokenizer.repairs.map(({ found, changed }) => `Tokenizer: ${found}; ${changed}.`)
  if (untrained.size === 0) return warnings
  const names = [...untrained.keys()].map((id) => quote(tokenizer.tokenOf(id) ?? String(id)))
  const shown = names.slice(0, 4).join(', ') + (names.length > 4 ? ', …' : '')
  const used = `The data use ${shown}, whose embeddings were never trained`
  return [
    ...warnings,
    trainsEmbeddings
      ? `${used}: their rows of embed_tokens and lm_head begin as the mean of the trained rows.`
      : `${used}, and which stay as they are: add embed_tokens and lm_head to lora.modules_to_save.`,
  ]
}
