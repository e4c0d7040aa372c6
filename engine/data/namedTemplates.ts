import { gemma4, gemma4Thinking, gptOss, lfm2, llama31, qwen3, qwen3Thinking } from './modelTemplates.ts'

/** A loop over turns that write `open` + role + `between` + content + `close`. */
const turns = (open: string, between: string, close: string, { role = "message['role']", before = '' } = {}): string =>
  `${before}{%- for message in messages %}{{- ${JSON.stringify(open)} + ${role} + ${JSON.stringify(between)} + message['content'] + ${JSON.stringify(close)} }}{%- endfor %}`

const prompted = (prompt: string): string => `{%- if add_generation_prompt %}{{- ${JSON.stringify(prompt)} }}{%- endif %}`

const bos = "{{- bos_token if bos_token is defined and bos_token else '' }}"

/** Writes a system message that the data lack. */
const withSystem = (text: string): string => `{%- if messages[0]['role'] != 'system' %}{{- ${JSON.stringify(text)} }}{%- endif %}`

/** Writes the parts of a conversation by role. The texts are expressions that use `text`. */
const byRole = (system: string, user: string, assistant: string): string =>
  "{%- for message in messages %}{%- set text = message['content'] %}" +
  `{%- if message['role'] == 'system' %}{{- ${system} }}{%- elif message['role'] == 'user' %}{{- ${user} }}` +
  `{%- elif message['role'] == 'assistant' %}{{- ${assistant} }}` +
  "{%- else %}{{- raise_exception('only system, user and assistant messages are supported, not ' + message['role']) }}{%- endif %}{%- endfor %}"

const chatml = turns('<|im_start|>', '\n', '<|im_end|>\n') + prompted('<|im_start|>assistant\n')
const eos = "(eos_token if eos_token is defined and eos_token else '')"

/** The turns of Gemma: the system message goes into the first question, and the assistant is called model. */
const gemma =
  `${bos}{%- set first = '' %}{%- set rest = messages %}` +
  "{%- if messages[0]['role'] == 'system' %}{%- set first = messages[0]['content'] + '\\n\\n' %}{%- set rest = messages[1:] %}{%- endif %}" +
  "{%- for message in rest %}{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' " +
  "+ (first if loop.first else '') + (message['content'] | trim) + '<end_of_turn>\\n' }}{%- endfor %}" +
  prompted('<start_of_turn>model\n')

/** Llama 2's and Mistral's brackets; the system message stands in the first question. */
const brackets = (system: string, question: string, answer: string): string =>
  `${bos}{%- set first = '' %}{%- set rest = messages %}` +
  `{%- if messages[0]['role'] == 'system' %}{%- set text = messages[0]['content'] %}{%- set first = ${system} %}{%- set rest = messages[1:] %}{%- endif %}` +
  "{%- for message in rest %}{%- set text = (first if loop.first else '') + message['content'] %}" +
  `{%- if message['role'] == 'user' %}{{- ${question} }}{%- elif message['role'] == 'assistant' %}{{- ${answer} }}` +
  "{%- else %}{{- raise_exception('only user and assistant messages are supported after the first, not ' + message['role']) }}{%- endif %}{%- endfor %}"

const llama3 =
  `${bos}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + (message['content'] | trim) + '<|eot_id|>' }}{%- endfor %}` +
  prompted('<|start_header_id|>assistant<|end_header_id|>\n\n')

const alpacaHead =
  'Below are some instructions that describe some tasks. Write responses that appropriately complete each request.'

/** Templates that can be named in a recipe instead of given, written from the public descriptions of the formats. */
export const namedTemplates: Readonly<Record<string, string>> = {
  chatml,
  'qwen-2.5': `${withSystem('<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n')}${chatml}`,
  'qwen-3': qwen3,
  'qwen3-instruct': chatml,
  'qwen3-thinking': qwen3Thinking,
  'yi-chat': chatml,
  'lfm-2': lfm2,
  'lfm-2.5': lfm2,
  'llama-3': llama3,
  'llama-3.1': llama31,
  llama: brackets(
    "'<<SYS>>\\n' + text + '\\n<</SYS>>\\n\\n'",
    "(bos_token if not loop.first else '') + '[INST] ' + text + ' [/INST]'",
    `' ' + (text | trim) + ' ' + ${eos}`,
  ),
  mistral: brackets("text + '\\n\\n'", "'[INST] ' + text + ' [/INST]'", `text + ${eos}`),
  gemma,
  gemma2: gemma,
  'gemma-3': gemma,
  'gemma-4': gemma4,
  'gemma-4-thinking': gemma4Thinking,
  'gpt-oss': gptOss,
  gemma_chatml: `${bos}${chatml}`,
  gemma2_chatml: `${bos}${chatml}`,
  'phi-3': turns('<|', '|>\n', '<|end|>\n', { before: bos }) + prompted('<|assistant|>\n'),
  'phi-4': turns('<|im_start|>', '<|im_sep|>', '<|im_end|>') + prompted('<|im_start|>assistant<|im_sep|>'),
  zephyr: `{%- for message in messages %}{{- '<|' + message['role'] + '|>\\n' + message['content'] + ${eos} + '\\n' }}{%- endfor %}${prompted('<|assistant|>\n')}`,
  vicuna:
    bos +
    withSystem(
      "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. ",
    ) +
    byRole("text + ' '", "'USER: ' + text + ' '", `'ASSISTANT: ' + text + ${eos}`) +
    prompted('ASSISTANT:'),
  vicuna_old:
    bos +
    withSystem(
      "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the human's questions.\n",
    ) +
    byRole("text + '\\n'", "'### Human: ' + text + '\\n'", `'### Assistant: ' + text + ${eos} + '\\n'`) +
    prompted('### Assistant:'),
  alpaca:
    bos +
    withSystem(`${alpacaHead}\n\n`) +
    byRole("text + '\\n\\n'", "'### Instruction:\\n' + text + '\\n\\n'", `'### Response:\\n' + text + ${eos} + '\\n\\n'`) +
    prompted('### Response:\n'),
  unsloth:
    bos +
    withSystem('You are a helpful assistant to the user\n') +
    byRole("text + '\\n'", "'>>> User: ' + text + '\\n'", `'>>> Assistant: ' + text + ${eos} + '\\n'`) +
    prompted('>>> Assistant: '),
  starling:
    bos +
    byRole(
      "text + '<|end_of_turn|>'",
      "'GPT4 Correct User: ' + text + '<|end_of_turn|>'",
      "'GPT4 Correct Assistant: ' + text + '<|end_of_turn|>'",
    ) +
    prompted('GPT4 Correct Assistant:'),
}

const otherNames: Readonly<Record<string, string>> = {
  llama3: 'llama-3',
  'llama-31': 'llama-3.1',
  llama31: 'llama-3.1',
  'phi-35': 'phi-3',
  'phi-3.5': 'phi-3',
  'qwen-25': 'qwen-2.5',
  qwen25: 'qwen-2.5',
  'qwen2.5': 'qwen-2.5',
  qwen3: 'qwen-3',
  gemma3: 'gemma-3',
  'gemma-3n': 'gemma-3',
  gemma3n: 'gemma-3',
  'vicuna old': 'vicuna_old',
  gemma4: 'gemma-4',
  'gemma4-thinking': 'gemma-4-thinking',
  gptoss: 'gpt-oss',
  lfm2: 'lfm-2',
}

/** The template of a name or of another spelling of it. */
export function namedTemplate(name: string): string | undefined {
  const own = Object.hasOwn(otherNames, name) ? otherNames[name]! : name
  return Object.hasOwn(namedTemplates, own) ? namedTemplates[own] : undefined
}

/** What ends a turn in templates that do not end it with EOS: `map_eos_token` makes it the EOS token. */
const stops: readonly (readonly [stop: string, names: readonly string[]])[] = [
  [
    '<|im_end|>',
    [
      'chatml',
      'qwen-2.5',
      'qwen-3',
      'qwen3-instruct',
      'qwen3-thinking',
      'yi-chat',
      'lfm-2',
      'lfm-2.5',
      'gemma_chatml',
      'gemma2_chatml',
      'phi-4',
    ],
  ],
  ['<|eot_id|>', ['llama-3', 'llama-3.1']],
  ['<end_of_turn>', ['gemma', 'gemma2', 'gemma-3']],
  ['<turn|>', ['gemma-4', 'gemma-4-thinking']],
  ['<|end|>', ['phi-3']],
  ['<|end_of_turn|>', ['starling']],
  ['<|return|>', ['gpt-oss']],
]

/** The token that ends turns in the template of this name; undefined when EOS does, or there is no such template. */
export function stopTokenOf(name: string): string | undefined {
  const own = Object.hasOwn(otherNames, name) ? otherNames[name]! : name
  return stops.find(([, names]) => names.includes(own))?.[0]
}
