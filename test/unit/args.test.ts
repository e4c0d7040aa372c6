import assert from 'node:assert/strict'
import { describeError, UnslothError } from '#shared/errors.ts'
import type { Recipe } from '#shared/recipe.ts'
import { recipeFields } from '#shared/recipe.ts'
import { exitCodeOf, parseArgs, type ParsedCommand } from '../../engine/cli/args.ts'
import { commandNames, commands, type CommandName } from '../../engine/cli/commandTable.ts'
import { helpText } from '../../engine/cli/help.ts'
import { recipeFromFlags } from '../../engine/recipe/parseRecipe.ts'

const split = (line: string): string[] => line.split(' ').filter((word) => word !== '')

function parse<Name extends CommandName>(name: Name, line: string): Extract<ParsedCommand, { command: Name }> {
  const parsed = parseArgs([name, ...split(line)])
  assert.equal(parsed.command, name)
  return parsed as Extract<ParsedCommand, { command: Name }>
}

function recipeOf(line: string): { recipe: Recipe; warnings: readonly string[] } {
  const { recipe, warnings } = parse('finetune', line)
  return { recipe: recipeFromFlags(recipe.overrides).recipe, warnings }
}

function fails(line: string, pattern: RegExp): void {
  assert.throws(
    () => parseArgs(split(line)),
    (error) => {
      assert.ok(UnslothError.is(error, 'USAGE'), String(error))
      assert.match(describeError(error), pattern)
      assert.equal(exitCodeOf(error), 2)
      return true
    },
  )
}

describe('command line', () => {
  it('reads typed flags with defaults', () => {
    const { flags, positionals } = parse(
      'generate',
      'model prompt --temperature=0.5 --top-k 10 --max_new_tokens 5 --chat --stop a b --seed 7',
    )
    assert.deepEqual(positionals, ['model', 'prompt'])
    assert.deepEqual([flags.temperature, flags.top_k, flags.max_new_tokens, flags.chat, flags.seed], [0.5, 10, 5, true, 7])
    assert.deepEqual(
      [flags.stop, flags.top_p, flags.repetition_penalty, flags.greedy, flags.adapter],
      [['a', 'b'], 0.9, 1.1, false, undefined],
    )
  })

  it('reads verify with its lists, in any order', () => {
    assert.deepEqual(parse('verify', 'DIR --skip a,b c --json --out x.safetensors').flags.skip, ['a', 'b', 'c'])
    const { positionals, flags } = parse('verify', '--skip a b DIR')
    assert.deepEqual([positionals, flags.skip, flags.device, flags.compute], [['DIR'], ['a', 'b'], 'cpu', 'float32'])
  })

  it('takes negative numbers as values and everything after -- as words', () => {
    assert.equal(parse('generate', 'm p --top-k -1').flags.top_k, -1)
    assert.deepEqual(parse('generate', 'm -- --not-a-flag').positionals, ['m', '--not-a-flag'])
  })

  it('knows help, version and train', () => {
    assert.deepEqual(parseArgs([]), { command: 'help', topic: null })
    assert.deepEqual(parseArgs(['--help']), { command: 'help', topic: null })
    assert.deepEqual(parseArgs(['verify', 'x', '--help']), { command: 'help', topic: 'verify' })
    assert.deepEqual(parseArgs(['help', 'bench']), { command: 'help', topic: 'bench' })
    assert.deepEqual(parseArgs(['--version']), { command: 'version' })
    assert.equal(parseArgs(['train', 'r.yaml']).command, 'finetune')
  })

  it('refuses bad command lines with what was meant, exit code 2', () => {
    fails('finetun x', /finetun is not a command; did you mean finetune\?/)
    fails('constructor', /constructor is not a command/)
    fails('--json doctor', /a command must come first/)
    fails('help nothing', /nothing is not a command/)
    fails('verify', /verify needs DIR/)
    fails('verify a b', /verify does not take "b"/)
    fails('doctor --jsn', /--jsn is not a flag of doctor; did you mean --json\?/)
    fails('generate m --temperature hot', /--temperature is a number, not "hot"/)
    fails('generate m --seed 1.5', /--seed is a whole number/)
    fails('generate m --top-p 2', /--top-p is a number from 0 to 1, not 2/)
    fails('generate m --seed', /--seed needs a value: --seed N/)
    fails('generate m --device gpux', /--device is one of auto, cpu, cuda, cuda:N/)
    fails('generate m --chat=perhaps', /--chat is true or false/)
    fails('finetune r.yaml --lerning_rate 1', /--lerning_rate is not a flag of finetune; did you mean --learning_rate\?/)
    fails('finetune a.yaml --config b.yaml', /two recipes are named/)
    fails('finetune a.yaml b.yaml', /does not take "b.yaml"/)
    fails('finetune --learning_rate --packing', /--learning_rate needs a value/)
    assert.equal(exitCodeOf(new UnslothError('DATA', 'x')), 1)
  })

  it('describes every command and flag in help', () => {
    const overview = helpText()
    for (const name of commandNames) {
      const text = helpText(name)
      assert.ok(text.startsWith(`unsloth ${name}: `))
      for (const flag of Object.keys(commands[name].flags))
        assert.ok(text.includes(`--${flag.replaceAll('_', '-')}`), `${name} --${flag}`)
      assert.equal(overview.includes(`  ${name} `), !('internal' in commands[name]))
    }
    assert.ok(helpText('finetune').includes('--learning_rate N'))
  })
})

describe('finetune: flags of the recipe', () => {
  it('are the same in every spelling', () => {
    for (const flag of [
      '--training.learning_rate 1e-4',
      '--learning_rate 1e-4',
      '--learning-rate=1e-4',
      '--training.learning-rate 1e-4',
      '--lr 1e-4',
    ]) {
      const { recipe } = recipeOf(`--model m --dataset d ${flag}`)
      assert.equal(recipe.training.learning_rate, 1e-4, flag)
    }
    for (const [flag, value] of [
      ['--packing', true],
      ['--no-packing', false],
      ['--packing=false', false],
      ['--packing true', true],
      ['--no_packing', false],
    ] as const) {
      assert.equal(recipeOf(`--model m --dataset d ${flag}`).recipe.training.packing, value, flag)
    }
  })

  it('exist for every key, by its full name', () => {
    for (const { path, meta } of recipeFields) {
      const line = meta.kind === 'boolean' ? `--${path}` : `--${path} x`
      const { recipe } = parse('finetune', line)
      assert.equal(recipe.overrides[0]?.path, path)
    }
  })

  it('leave the file and read its name in both ways', () => {
    assert.equal(parse('finetune', 'r.yaml --seed 1').recipe.file, 'r.yaml')
    assert.equal(parse('finetune', '-c r.yaml').recipe.file, 'r.yaml')
    assert.equal(parse('finetune', '--config=r.yaml --dry-run').flags.dry_run, true)
    assert.equal(parse('finetune', '--target_modules q_proj k_proj r.yaml').recipe.file, 'r.yaml')
    assert.equal(parse('finetune', '--local_dataset a.json r.yaml').recipe.file, 'r.yaml')
  })

  it('take lists, empty values, and the last of several', () => {
    const { recipe } = recipeOf(
      '--model m --local_dataset a.jsonl --local_dataset b.jsonl ' +
        '--target_modules q_proj k_proj --seed 1 --seed 2 --run_name none',
    )
    assert.deepEqual(recipe.data.local_dataset, ['a.jsonl', 'b.jsonl'])
    assert.deepEqual(recipe.lora.target_modules, ['q_proj', 'k_proj'])
    assert.deepEqual([recipe.training.random_seed, recipe.training.run_name], [2, null])
    assert.deepEqual(recipeOf('--model m --dataset d --save.method lora,merged_16bit --save_path out').recipe.save.method, [
      'lora',
      'merged_16bit',
    ])
  })

  it('name the flag when the value is wrong', () => {
    assert.throws(
      () => recipeOf('--model m --dataset d --batch-size many'),
      (error) => UnslothError.is(error, 'RECIPE') && error.message.startsWith('--batch-size: must be a whole number'),
    )
  })

  it('take secrets and keep them nowhere', () => {
    for (const flag of ['--hub_token', '--hf-token', '--wandb-token', '--hub.token', '--logging.hf_token']) {
      for (const line of [`r.yaml ${flag} hf_secret`, `r.yaml ${flag}=hf_secret`]) {
        const parsed = parse('finetune', line)
        assert.ok(!JSON.stringify(parsed).includes('hf_secret'), line)
        assert.equal(parsed.warnings.length, 1)
        assert.deepEqual(parsed.positionals, ['r.yaml'])
      }
    }
    assert.throws(
      () => parseArgs(['finetune', '--hub_tokn=hf_secret']),
      (error) => !describeError(error).includes('hf_secret'),
    )
  })
})

describe('finetune: command lines of unsloth-cli.py', () => {
  const whole = `--model_name ./m --max_seq_length 1024 --dtype None --load_in_4bit --dataset d.jsonl --r 8 --lora_alpha 24
    --lora_dropout 0.1 --bias none --use_gradient_checkpointing unsloth --random_state 7 --use_rslora --loftq_config None
    --per_device_train_batch_size 3 --per_device_eval_batch_size 5 --gradient_accumulation_steps 6 --warmup_steps 9 --max_steps 99
    --learning_rate 3e-4 --optim adamw_8bit --weight_decay 0.02 --lr_scheduler_type cosine --seed 7 --packing
    --chunk_size 100 --stride 10 --report_to none --logging_steps 2 --output_dir out --save_model
    --save_method lora --save_path saved
    --quantization q8_0 q4_k_m --hub_path me/x --hub_token hf_secret`.replaceAll('\n', ' ')

  it('reads every flag', () => {
    const { recipe, warnings } = recipeOf(whole)
    const { model, data, training, lora, logging, save, hub } = recipe
    assert.deepEqual([model.name, model.dtype], ['./m', 'auto'])
    assert.deepEqual(
      [data.dataset, data.local_dataset, data.format_type, data.chunk_size, data.stride],
      [null, ['d.jsonl'], 'alpaca', 100, 10],
    )
    assert.deepEqual(
      [lora.lora_r, lora.lora_alpha, lora.lora_dropout, lora.use_rslora, lora.use_loftq],
      [8, 24, 0.1, true, false],
    )
    assert.deepEqual(lora.target_modules, ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'])
    assert.deepEqual([training.batch_size, training.per_device_eval_batch_size, training.gradient_accumulation_steps], [3, 5, 6])
    assert.deepEqual(
      [training.warmup_steps, training.max_steps, training.learning_rate, training.weight_decay],
      [9, 99, 3e-4, 0.02],
    )
    assert.deepEqual(
      [training.optim, training.lr_scheduler_type, training.random_seed, training.packing],
      ['adamw_8bit', 'cosine', 7, true],
    )
    assert.deepEqual(
      [training.load_in_4bit, training.gradient_checkpointing, training.max_seq_length, training.output_dir],
      [true, 'offload', 1024, 'out'],
    )
    assert.deepEqual([logging.logging_steps, logging.enable_tensorboard], [2, false])
    assert.deepEqual([save.method, save.path, save.quantization], [['lora'], 'saved', ['q8_0', 'q4_k_m']])
    assert.deepEqual([hub.push, hub.repo_id], [false, 'me/x'])
    assert.equal(warnings.length, 1)
    assert.match(warnings[0]!, /^--hub_token is not used/)
    assert.ok(!JSON.stringify(recipe).includes('hf_secret'))
  })

  it('has the defaults of the old program', () => {
    const { recipe } = recipeOf('--model_name m --save_model')
    assert.deepEqual([recipe.data.dataset, recipe.data.format_type], ['yahma/alpaca-cleaned', 'alpaca'])
    assert.deepEqual([recipe.lora.lora_r, recipe.lora.lora_alpha, recipe.training.max_steps], [16, 16, 400])
    assert.deepEqual([recipe.save.method, recipe.save.path, recipe.training.output_dir], [['merged_16bit'], 'model', 'outputs'])
  })

  it('keeps the adapter when nothing was to be saved, and says so', () => {
    const { recipe, warnings } = recipeOf('--model_name m --dataset d.jsonl --save_method merged_16bit --save_path x')
    assert.deepEqual([recipe.save.method, recipe.save.path], [['lora'], null])
    assert.match(warnings.join(), /the adapter is kept in the run directory/)
  })

  it('pushes to the path that was given', () => {
    const { recipe } = recipeOf('--model_name m --dataset d.jsonl --save_model --push_model --hub_path me/model --hub_token t')
    assert.deepEqual([recipe.hub.push, recipe.hub.repo_id], [true, 'me/model'])
    assert.throws(
      () => recipeOf('--model_name m --push_model'),
      (error) => UnslothError.is(error, 'USAGE') && error.message.includes('--hub_path'),
    )
  })

  it('translates GGUF, raw text, LoftQ and reports', () => {
    const overrides = (line: string): Map<string, unknown> =>
      new Map(parse('finetune', line).recipe.overrides.map((override) => [override.path, override.value]))
    assert.deepEqual(overrides('--model_name m --save_gguf --quantization q8_0').get('save.method'), ['gguf'])
    assert.deepEqual(overrides('--model_name m --save_model --save_gguf').get('save.method'), ['merged_16bit', 'gguf'])
    const raw = overrides('--model_name m --raw_text_file book.txt --stride 10')
    assert.deepEqual(
      [raw.get('data.local_dataset'), raw.get('data.format_type'), raw.has('data.dataset')],
      [['book.txt'], 'raw', false],
    )
    assert.equal(overrides('--model_name m --loftq_config {"loftq_bits":4}').get('lora.use_loftq'), true)
    assert.equal(overrides('--model_name m --report_to tensorboard wandb').get('logging.enable_wandb'), true)
    assert.match(parse('finetune', '--model_name m --report_to mlflow').warnings.join(), /--report_to mlflow is not available/)
  })

  it('has one seed, and says which when two differ', () => {
    assert.equal(recipeOf('--model_name m --random_state 5').recipe.training.random_seed, 5)
    const { recipe, warnings } = recipeOf('--model_name m --seed 4 --random_state 5')
    assert.equal(recipe.training.random_seed, 4)
    assert.match(warnings.join('\n'), /--seed and --random_state differ: one seed decides everything here, 4/)
  })

  it('does not mistake new flags for old ones', () => {
    const { recipe } = recipeOf('--model m --local_dataset d.jsonl --r 8 --num_epochs 1')
    assert.deepEqual(
      [recipe.training.max_steps, recipe.data.format_type, recipe.lora.lora_r, recipe.lora.lora_alpha],
      [0, 'auto', 8, 16],
    )
    assert.equal(parse('finetune', 'r.yaml --r 8').recipe.overrides.length, 1)
  })
})
