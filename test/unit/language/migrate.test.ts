import assert from 'node:assert/strict'
import { codeActions } from '../../../src/language/quickFixes.ts'
import { diagnoseSchema } from '../../../src/language/diagnostics.ts'
import { foreignKind } from '../../../src/language/migrate/foreign.ts'
import { migrateForeign } from '../../../src/language/migrate/migrate.ts'
import { applyEdits, SourceText } from '../../../src/language/text.ts'
import type { Recipe } from '#shared/recipe.ts'
import { stringify } from 'yaml'
import { random } from './support.ts'

function migrated(text: string): { recipe: Recipe; text: string; notes: readonly string[] } {
  const migration = migrateForeign(text)
  assert.ok(migration, `not recognised: ${text}`)
  const { recipe, problems } = diagnoseSchema(new SourceText(migration.text), 'f.yaml')
  assert.ok(recipe, `${migration.text}\n${problems.map(({ message }) => message).join('\n')}`)
  return { recipe, text: migration.text, notes: migration.notes }
}

const axolotl = `# Fine-tunes a small model
base_model: NousResearch/Llama-3.2-1B
load_in_8bit: false
load_in_4bit: true
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
val_set_size: 0.1
output_dir: ./outputs/lora-out
adapter: qlora
sequence_len: 2048
sample_packing: true
pad_to_sequence_len: true
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_modules:
  - gate_proj
  - down_proj
wandb_project:
gradient_accumulation_steps: 2
micro_batch_size: 3
num_epochs: 2
optimizer: adamw_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
gradient_checkpointing: true
logging_steps: 1
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens:
  pad_token: "<|end_of_text|>"
`

const llamaFactory = `### model
model_name_or_path: meta-llama/Llama-3.2-1B-Instruct
trust_remote_code: true
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
### dataset
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
### output
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
report_to: none
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
`

describe("migration of other programs' recipes", () => {
  it('reads an Axolotl file', () => {
    const { recipe, text, notes } = migrated(axolotl)
    const { model, data, training, lora } = recipe
    assert.equal(model.name, 'NousResearch/Llama-3.2-1B')
    assert.deepEqual([data.dataset, data.format_type, data.eval_split], ['teknium/GPT4-LLM-Cleaned', 'alpaca', 0.1])
    assert.deepEqual(
      [training.max_seq_length, training.packing, training.batch_size, training.gradient_accumulation_steps, training.num_epochs],
      [2048, true, 3, 2, 2],
    )
    assert.deepEqual(
      [training.optim, training.lr_scheduler_type, training.learning_rate, training.warmup_steps, training.weight_decay],
      ['adamw_8bit', 'cosine', 2e-4, 10, 0],
    )
    assert.deepEqual(
      [training.load_in_4bit, training.train_on_completions, training.gradient_checkpointing, training.output_dir],
      [true, true, 'full', './outputs/lora-out'],
    )
    assert.deepEqual(
      [lora.lora_r, lora.lora_alpha, lora.lora_dropout, lora.target_modules],
      [16, 32, 0.05, ['gate_proj', 'down_proj']],
    )
    assert.equal(training.eval_steps, 0.125)
    assert.ok(text.startsWith('# Fine-tunes a small model\n') && notes.some((note) => note.startsWith('special_tokens')))
    assert.match(text, /# Not carried over from Axolotl:\n#   /)
  })

  it('reads a LLaMA-Factory file', () => {
    const { data, training, lora } = migrated(llamaFactory).recipe
    assert.deepEqual(
      [data.local_dataset, data.max_samples, data.eval_split],
      [['data/identity.json', 'data/alpaca_en_demo.json'], 1000, 0.1],
    )
    assert.deepEqual(
      [training.learning_rate, training.num_epochs, training.warmup_ratio, training.save_steps, training.eval_steps],
      [1e-4, 3, 0.1, 500, 500],
    )
    assert.deepEqual([lora.lora_r, lora.lora_alpha, lora.target_modules], [8, 16, ['all-linear']])
    assert.equal(training.train_on_completions, true)
  })

  it('reads a flat run request of Studio', () => {
    const { recipe } = migrated(
      'model_name: unsloth/Qwen3-0.6B\ntraining_type: LoRA/QLoRA\nload_in_4bit: false\nmax_seq_length: 1024\nlocal_datasets: [a.jsonl, b.jsonl]\nlearning_rate: "5e-5"\nlora_r: 16\ntarget_modules: []\nis_dataset_image: false\nhf_token: hf_secret\n',
    )
    assert.deepEqual(
      [recipe.model.name, recipe.data.local_dataset, recipe.training.learning_rate, recipe.lora.lora_r],
      ['unsloth/Qwen3-0.6B', ['a.jsonl', 'b.jsonl'], 5e-5, 16],
    )
  })

  it('never repeats a secret', () => {
    for (const key of ['hub_token', 'hf_hub_token', 'wandb_api_key', 'hf_token', 'api_key', 'token']) {
      const { text, notes } = migrated(`${llamaFactory}${key}: hf_SECRETVALUE\n`)
      assert.ok(!text.includes('SECRETVALUE') && notes.some((note) => note.startsWith(key)), text)
    }
  })

  it('is one problem with one quick fix, and keeps line ends', () => {
    const crlf = axolotl.replaceAll('\n', '\r\n')
    const { problems } = diagnoseSchema(new SourceText(crlf), 'f.yaml')
    assert.deepEqual(
      problems.map(({ code }) => code),
      ['foreign'],
    )
    const [action] = codeActions(new SourceText(crlf), 'file:///f.yaml', problems[0]!.range, problems)
    const after = applyEdits(new SourceText(crlf), action!.edit!.changes!['file:///f.yaml']!)
    assert.ok(!/[^\r]\n/.test(after) && diagnoseSchema(new SourceText(after), 'f.yaml').recipe !== null, after)
  })

  it('takes no recipe for a foreign file', () => {
    for (const text of [
      'model: x\ndata:\n  dataset: y\n',
      'model:\n  name: x\nlora_r: 8\n',
      'base_model: x\n',
      'model: x\nmodel_name: y\nmax_seq_length: 4\n',
      '',
      'model_name: [',
      '- base_model: x',
    ]) {
      assert.equal(foreignKind(text), undefined, text)
    }
  })

  it('turns 120 made-up foreign files into recipes that are right', () => {
    for (let seed = 1; seed <= 120; seed++) {
      const next = random(seed)
      const pick = <T>(...values: T[]): T => values[next(values.length)]!
      const maybe = (all: Record<string, unknown>, key: string, ...values: unknown[]): void => {
        if (next(3) > 0) all[key] = pick(...values)
      }
      const all: Record<string, unknown> = {}
      if (seed % 2 === 0) {
        all.base_model = pick('org/model', './local/model', 'NousResearch/Llama-3.2-1B')
        all.datasets = pick<unknown>(
          [{ path: 'tatsu-lab/alpaca', type: 'alpaca' }],
          [{ path: 'data/a.jsonl', ds_type: 'json', type: 'chat_template' }],
          [{ path: 'json', data_files: ['a.jsonl', 'b.jsonl'], type: 'completion', field: 'body' }],
          [
            { path: 'x/y', type: { system_prompt: '', field_instruction: 'q' } },
            { path: 'z/w', type: 'sharegpt', conversation: 'chatml' },
          ],
        )
        maybe(all, 'adapter', 'lora', 'qlora', '', null, 'llama-adapter')
        maybe(all, 'load_in_4bit', true, false)
        maybe(all, 'lora_r', 8, 64)
        maybe(all, 'lora_target_linear', true)
        maybe(all, 'lora_target_modules', ['q_proj', 'v_proj'], 'q_proj,v_proj', 'all-linear')
        maybe(all, 'peft_use_dora', true)
        maybe(all, 'sequence_len', 512, 8192)
        maybe(all, 'sample_packing', true, false)
        maybe(all, 'micro_batch_size', 1, 4)
        maybe(all, 'val_set_size', 0, 0.05, 100)
        maybe(all, 'test_datasets', [{ path: 'eval.jsonl', ds_type: 'json', type: 'alpaca' }])
        maybe(all, 'optimizer', 'adamw_bnb_8bit', 'lion_8bit', 'adamw_torch_fused', 'muon')
        maybe(all, 'lr_scheduler', 'cosine', 'linear', 'rex', 'one_cycle')
        maybe(all, 'warmup_ratio', 0.03, 0.1)
        maybe(all, 'num_epochs', 1, 3, 0.5)
        maybe(all, 'evals_per_epoch', 0, 1, 4)
        maybe(all, 'saves_per_epoch', 1, 2)
        maybe(all, 'save_steps', 0.25, 100)
        maybe(all, 'train_on_inputs', true, false)
        maybe(all, 'gradient_checkpointing', true, false, 'offload', 'unsloth')
        maybe(all, 'rl', 'dpo')
        maybe(all, 'deepspeed', 'deepspeed_configs/zero3.json')
        maybe(all, 'resume_from_checkpoint', null, './out/checkpoint-10')
        maybe(all, 'plugins', ['axolotl.integrations.liger.LigerPlugin'])
        maybe(all, 'wandb_project', 'p', null)
        maybe(all, 'hub_model_id', 'me/model')
        maybe(all, 'max_steps', 100)
        maybe(all, 'warmup_steps', 10, 200)
      } else {
        all.model_name_or_path = pick('org/model', '/models/x')
        all.stage = pick('sft', 'sft', 'pt', 'dpo')
        all.finetuning_type = pick('lora', 'full', 'freeze')
        all.dataset = pick('identity', 'a,b', 'alpaca_en', 'x/y', 'mine.jsonl')
        maybe(all, 'dataset_dir', 'data', './sets/')
        maybe(all, 'template', 'qwen', 'llama3')
        maybe(all, 'lora_rank', 8, 32)
        maybe(all, 'lora_alpha', 16)
        maybe(all, 'lora_target', 'all', 'q_proj,v_proj')
        maybe(all, 'quantization_bit', 4, 8, 2)
        maybe(all, 'cutoff_len', 1024)
        maybe(all, 'per_device_train_batch_size', 1, 2)
        maybe(all, 'learning_rate', 1e-4, '5.0e-5')
        maybe(all, 'num_train_epochs', 3, '2.0')
        maybe(all, 'lr_scheduler_type', 'cosine', 'inverse_sqrt', 'polynomial')
        maybe(all, 'warmup_steps', 0, 20)
        maybe(all, 'val_size', 0.1, 0)
        maybe(all, 'eval_dataset', 'held')
        maybe(all, 'eval_steps', 100, 0.1)
        maybe(all, 'report_to', 'wandb', ['tensorboard'], 'none')
        maybe(all, 'streaming', true)
        maybe(all, 'pissa_init', true)
        maybe(all, 'use_dora', true)
        maybe(all, 'neftune_noise_alpha', 5)
        maybe(all, 'max_steps', -1, 50)
        maybe(all, 'resume_from_checkpoint', true, 'out/checkpoint-1')
        maybe(all, 'hf_hub_token', 'hf_x')
        maybe(all, 'train_on_prompt', true)
        maybe(all, 'disable_gradient_checkpointing', true)
      }
      const { recipe, text } = migrated(stringify(all))
      assert.equal(recipe.model.name, all.base_model ?? all.model_name_or_path, `seed ${seed}`)
      assert.ok(recipe.data.dataset !== null || recipe.data.local_dataset.length > 0, text)
      if (all.micro_batch_size !== undefined) assert.equal(recipe.training.batch_size, all.micro_batch_size)
      if (all.cutoff_len !== undefined) assert.equal(recipe.training.max_seq_length, all.cutoff_len)
      if (typeof all.learning_rate === 'string') assert.equal(recipe.training.learning_rate, 5e-5)
    }
  })
})
