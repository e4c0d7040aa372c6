/**
 * Chat templates that a recipe can name, of models whose formats take more than a loop over turns. Written from the public
 * descriptions of the formats (model cards, OpenAI's harmony guide); the models' own templates also show tools.
 */

/** A system turn with two dates comes first, whether or not the conversation has a system message. */
export const llama31 = `{{- bos_token if bos_token is defined and bos_token else '' }}
{%- set system = '' %}
{%- set rest = messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: ' }}
{{- (date_string if date_string is defined else '26 Jul 2024') + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in rest %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + (message['content'] | trim) + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}`

/**
 * Thoughts stand in `reasoning_content`, or in the content up to `</think>`. Those of answers before the last question are left
 * out; the last answer always has the tags, empty when it has no thoughts. `prompt`: what begins an answer.
 */
const qwen3With = (prompt: string): string => `{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message['content'] %}
    {%- if message['role'] == 'assistant' %}
        {%- set thought = '' %}
        {%- if message['reasoning_content'] is string %}
            {%- set thought = message['reasoning_content'] %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') + '<|im_end|>\\n' }}
        {%- else %}
            {{- content + '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- ${JSON.stringify(prompt)} }}
{%- endif %}`

export const qwen3 = qwen3With('<|im_start|>assistant\n')
export const qwen3Thinking = qwen3With('<|im_start|>assistant\n<think>\n')

/** ChatML behind a BOS. */
export const lfm2 = `{{- bos_token if bos_token is defined and bos_token else '' }}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}`

/** `thinks`: the system turn asks for thoughts; otherwise an answer begins with an empty channel of thoughts. */
const gemma4With = (thinks: boolean): string => `{{- bos_token if bos_token is defined and bos_token else '' }}
{%- set rest = messages %}
{%- set system = '' %}
{%- if messages[0]['role'] in ['system', 'developer'] %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- endif %}
{%- if ${thinks ? 'true' : 'rest | length < messages | length'} %}
    {{- '<|turn>system\\n${thinks ? '<|think|>\\n' : ''}' + system + '<turn|>\\n' }}
{%- endif %}
{%- for message in rest %}
    {{- '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
    {%- if message['role'] == 'assistant' and ${thinks ? "message['reasoning_content'] is string and loop.last" : 'false'} %}
        {{- '<|channel>thought\\n' + message['reasoning_content'] + '\\n<channel|>' }}
    {%- endif %}
    {{- (message['content'] | trim) + '<turn|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|turn>model\\n${thinks ? '' : '<|channel>thought\\n<channel|>'}' }}
{%- endif %}`

export const gemma4 = gemma4With(false)
export const gemma4Thinking = gemma4With(true)

/**
 * OpenAI's harmony: a system message of the model's own, the system message of the data as the developer's, and answers in channels.
 * Thoughts stand in `thinking` and are shown of the last answer only, which ends with what ends generation.
 */
export const gptOss = `{{- '<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\\nKnowledge cutoff: 2024-06\\n' }}
{{- 'Current date: ' + strftime_now('%Y-%m-%d') + '\\n\\nReasoning: ' + (reasoning_effort if reasoning_effort is defined else 'medium') }}
{{- '\\n\\n# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>' }}
{%- set rest = messages %}
{%- if messages[0]['role'] in ['system', 'developer'] %}
    {%- set rest = messages[1:] %}
    {%- if messages[0]['content'] %}
        {{- '<|start|>developer<|message|># Instructions\\n\\n' + messages[0]['content'] + '\\n\\n<|end|>' }}
    {%- endif %}
{%- endif %}
{%- for message in rest %}
    {%- if message['role'] == 'assistant' %}
        {%- set last = loop.last and not add_generation_prompt %}
        {%- if last and message['thinking'] is string %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + message['thinking'] + '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message['content'] + ('<|return|>' if last else '<|end|>') }}
    {%- elif message['role'] == 'user' %}
        {{- '<|start|>user<|message|>' + message['content'] + '<|end|>' }}
    {%- else %}
        {{- raise_exception('only system, user and assistant messages are supported, not ' + message['role']) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant' }}
{%- endif %}`
