import type { ChatMessage, ChatTemplate } from './chatTemplate.ts'

/** Texts that introduce the turns of a format, and what ends a turn. */
export interface TurnMarkers {
  readonly instruction: string
  readonly response: string
  /** The end of an answer, trained with it; empty when only the next instruction ends it. */
  readonly end: string
}

/** Markers of known formats. A marker must not hold `<think>`: thinking templates drop it from earlier turns. */
const known: readonly TurnMarkers[] = [
  {
    instruction: '<|start_header_id|>user<|end_header_id|>\n\n',
    response: '<|start_header_id|>assistant<|end_header_id|>\n\n',
    end: '<|eot_id|>',
  },
  { instruction: '<|im_start|>user\n', response: '<|im_start|>assistant\n', end: '<|im_end|>\n' },
  { instruction: '<|im_start|>user<|im_sep|>', response: '<|im_start|>assistant<|im_sep|>', end: '<|im_end|>' },
  { instruction: '<start_of_turn>user\n', response: '<start_of_turn>model\n', end: '<end_of_turn>\n' },
  { instruction: '<|turn>user\n', response: '<|turn>model\n', end: '<turn|>\n' },
  { instruction: '<|user|>\n', response: '<|assistant|>\n', end: '<|end|>\n' },
  { instruction: '<|start|>user<|message|>', response: '<|start|>assistant<|channel|>final<|message|>', end: '' },
  { instruction: '[INST]', response: '[/INST]', end: '</s>' },
  { instruction: '### Instruction:\n', response: '### Response:\n', end: '' },
  { instruction: 'USER:', response: 'ASSISTANT:', end: '</s>' },
]

/** Markers of a known format, when the text uses both of them. */
export const knownMarkers = (text: string): TurnMarkers | undefined =>
  known.find(({ instruction, response }) => text.includes(instruction) && text.includes(response))

const commonPrefix = (a: string, b: string): string => {
  let length = 0
  while (length < a.length && a[length] === b[length]) length++
  return a.slice(0, length)
}

/** Words that no template writes by itself, for asking and answering. */
const probe = [
  'Kestrel question one',
  'Kestrel answer one',
  'Kestrel question two',
  'Kestrel answer two',
  'Kestrel question three',
  'Kestrel answer three',
]

/**
 * Markers of a template: those of a known format when it writes them, else what stands between the turns of a conversation
 * of three questions and answers. Undefined when the template does not show such turns in order.
 */
export function templateMarkers(template: ChatTemplate): TurnMarkers | undefined {
  const messages: ChatMessage[] = probe.map((content, index) => ({ role: index % 2 === 0 ? 'user' : 'assistant', content }))
  let text: string
  try {
    text = template.render(messages)
  } catch {
    return undefined
  }
  const fromTable = knownMarkers(text)
  if (fromTable !== undefined) return fromTable
  const places = probe.map((words) => text.indexOf(words))
  if (places.some((place, index) => place < 0 || place <= (places[index - 1] ?? -1))) return undefined
  const gap = (index: number): string => text.slice(places[index]! + probe[index]!.length, places[index + 1])
  const [toAnswer, toQuestion] = [gap(2), gap(1)]
  if (toAnswer !== gap(0) || toQuestion !== gap(3) || toAnswer === '' || toQuestion === '') return undefined
  const end = commonPrefix(toQuestion, text.slice(places[5]! + probe[5]!.length))
  const instruction = toQuestion.slice(end.length)
  if (instruction === '') return { instruction: toQuestion, response: toAnswer, end: '' }
  return { instruction, response: toAnswer, end: end.trim() === '' ? '' : end }
}

/** Characters from–to of a text, to exclusive. */
export interface TextSpan {
  readonly from: number
  readonly to: number
}

/** Answers found by their markers: from after a response marker to the end of the turn or before the next instruction. */
export function spansByMarkers(text: string, { instruction, response, end }: TurnMarkers): TextSpan[] {
  const spans: TextSpan[] = []
  for (let at = text.indexOf(response); at >= 0;) {
    const from = at + response.length
    const next = text.indexOf(instruction, from)
    const limit = next < 0 ? text.length : next
    const close = end === '' ? -1 : text.indexOf(end, from)
    const to = close >= 0 && close + end.length <= limit ? close + end.length : limit
    spans.push({ from, to })
    at = text.indexOf(response, to)
  }
  return spans
}
