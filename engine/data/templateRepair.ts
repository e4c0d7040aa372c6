import { ChatTemplate } from './chatTemplate.ts'
import type { Tokenizer } from './tokenizer.ts'

const question = { role: 'user', content: 'Kestrel question' }
const answers = ['Kestrel answer', 'Osprey reply'] as const

/** What the template writes between a question and its answer, and after it; undefined when it cannot be told. */
function aroundAnswer(template: ChatTemplate): { before: string; asked: string } | undefined {
  const asked = template.render([question])
  const [first, second] = answers.map((content) => template.render([question, { role: 'assistant', content }]))
  const at = answers.map((content, index) => [first, second][index]!.indexOf(content))
  if (at[0]! < 0 || at[0] !== at[1] || !first!.startsWith(asked) || first!.slice(0, at[0]) !== second!.slice(0, at[1]))
    return undefined
  return { before: first!.slice(asked.length, at[0]), asked }
}

/** What became of a template that was looked at. */
export interface TemplateVerdict {
  /** Whether `add_generation_prompt` makes a difference. */
  readonly prompts: boolean
  /** The template with a generation prompt, when it lacked one and what to write was found. */
  readonly repaired?: string
  /** What the generation prompt of the repaired template is. */
  readonly prompt?: string
  /** Why it could not be rendered. */
  readonly failure?: string
}

/**
 * Looks whether a chat template ends with what introduces an answer when it is asked to, and makes it do so: what stands before an
 * answer is found from two conversations that differ only in the answer.
 */
export function examineTemplate(
  source: string,
  tokens: Pick<Tokenizer, 'bosToken' | 'eosToken' | 'padToken' | 'unkToken'>,
): TemplateVerdict {
  const make = (text: string): ChatTemplate => new ChatTemplate(text, { name: 'the chat template', tokens })
  try {
    const template = make(source)
    const [without, asked] = [template.render([question]), template.render([question], { addGenerationPrompt: true })]
    if (without !== asked) return { prompts: true }
    // The template puts the answer right behind the question: Mistral's [/INST] belongs to the question.
    const around = aroundAnswer(template)
    if (around === undefined) return { prompts: false }
    if (around.before.trim() === '') return { prompts: true }
    const repaired = `${source}{%- if add_generation_prompt %}{{- ${JSON.stringify(around.before)} }}{%- endif %}`
    const check = make(repaired)
    const good =
      check.render([question]) === without && check.render([question], { addGenerationPrompt: true }) === without + around.before
    return good ? { prompts: false, repaired, prompt: around.before } : { prompts: false }
  } catch (error) {
    return { prompts: false, failure: (error as Error).message }
  }
}
