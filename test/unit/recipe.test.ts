import assert from 'node:assert/strict'
import { diagnoseRecipe } from '../../engine/recipe/parseRecipe.ts'
import {
  closest,
  editDistance,
  effectiveBatch,
  evalInterval,
  parseByteSize,
  recipeFields,
  recipeSchema,
  schedulerCycles,
  targetModules,
  totalSteps,
  unsupportedSettings,
  validateRecipe,
  warmupSteps,
  type Recipe,
} from '#shared/recipe.ts'

const base = { model: 'some/model', data: { dataset: 'some/data' } }
type Document = Readonly<Record<string, unknown>>

function accept(document: Document): Recipe {
  const { recipe, issues } = validateRecipe({ ...base, ...document })
  assert.ok(recipe, issues.map((issue) => issue.message).join('\n'))
  return recipe
}

function messages(document: Document): string[] {
  return validateRecipe({ ...base, ...document }).issues.map((issue) => `${issue.severity}: ${issue.message}`)
}

function refuses(document: Document, pattern: RegExp): void {
  const { recipe, issues } = validateRecipe({ ...base, ...document })
  assert.equal(recipe, null, `accepted ${JSON.stringify(document)}`)
  assert.ok(
    issues.some((issue) => issue.severity === 'error' && pattern.test(issue.message)),
    issues.map((issue) => issue.message).join('\n'),
  )
}

describe('recipe: defaults and spellings', () => {
  it('fills in the defaults of unsloth train', () => {
    const { training, lora, logging, save, model } = accept({})
    assert.equal(model.name, 'some/model')
    assert.deepEqual(
      [
        training.max_seq_length,
        training.num_epochs,
        training.learning_rate,
        training.batch_size,
        training.gradient_accumulation_steps,
      ],
      [2048, 3, 2e-4, 2, 4],
    )
    assert.deepEqual(
      [training.warmup_steps, training.warmup_ratio, training.weight_decay, training.random_seed],
      [5, null, 0.01, 3407],
    )
    assert.deepEqual([lora.lora_r, lora.lora_alpha, lora.lora_dropout], [64, 16, 0])
    assert.deepEqual(lora.target_modules, ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'])
    assert.equal(logging.logging_steps, 1)
    assert.deepEqual(save.method, ['lora'])
  })

  it('reads every alias as its key', () => {
    for (const { section, key, meta } of recipeFields) {
      for (const alias of meta.aliases ?? []) {
        const value = meta.kind === 'choice' ? Object.keys(meta.values!).at(-1)! : meta.kind === 'boolean' ? true : 'x'
        const { issues } = validateRecipe({ [section]: { [alias]: value } })
        assert.ok(
          !issues.some((issue) => issue.code === 'unknown_key' || issue.code === 'wrong_section'),
          `${section}.${alias} for ${key}`,
        )
      }
    }
    const { training, lora } = accept({
      training: {
        seed: 1,
        per_device_train_batch_size: 7,
        num_train_epochs: 1.5,
        lr_scheduler: 'cosine',
        use_gradient_checkpointing: true,
      },
      lora: { r: 4, alpha: 8, dropout: 0.1 },
    })
    assert.deepEqual([training.random_seed, training.batch_size, training.num_epochs], [1, 7, 1.5])
    assert.deepEqual([training.lr_scheduler_type, training.gradient_checkpointing], ['cosine', 'full'])
    assert.deepEqual([lora.lora_r, lora.lora_alpha, lora.lora_dropout], [4, 8, 0.1])
  })

  it('refuses two names of one setting unless they agree', () => {
    refuses({ training: { seed: 1, random_state: 2 } }, /random_state and training\.seed are two names of the same setting/)
    assert.equal(accept({ training: { seed: 1, random_state: 1 } }).training.random_seed, 1)
  })

  it('reads what YAML 1.1 tools write', () => {
    const { training } = accept({
      training: { learning_rate: '2e-4', max_steps: '1_000', packing: 'yes', gradient_checkpointing: false },
    })
    assert.deepEqual(
      [training.learning_rate, training.max_steps, training.packing, training.gradient_checkpointing],
      [2e-4, 1000, true, 'none'],
    )
  })

  it('normalises gradient_checkpointing, optim, max_steps, resume_from and format_type', () => {
    const { training, data } = accept({
      training: { gradient_checkpointing: 'unsloth', optim: 'AdamW', max_steps: -1, resume_from_checkpoint: true },
      data: { dataset: 'x', format_type: 'messages' },
    })
    assert.deepEqual(
      [training.gradient_checkpointing, training.optim, training.max_steps, training.resume_from],
      ['offload', 'adamw_torch', 0, 'latest'],
    )
    assert.equal(data.format_type, 'chatml')
    assert.equal(accept({ training: { resume_from: false } }).training.resume_from, null)
  })

  it('takes lists as text, list or all-linear', () => {
    assert.deepEqual(accept({ lora: { target_modules: ' q_proj, v_proj ' } }).lora.target_modules, ['q_proj', 'v_proj'])
    assert.equal(targetModules(accept({ lora: { target_modules: 'all-linear' } })), 'all-linear')
    assert.deepEqual(accept({ data: { local_dataset: 'one, two.jsonl' } }).data.local_dataset, ['one, two.jsonl'])
    assert.deepEqual(accept({ lora: { layers_to_transform: 3 } }).lora.layers_to_transform, [3])
    assert.deepEqual(accept({ lora: { layers_to_transform: '0,2' } }).lora.layers_to_transform, [0, 2])
    assert.deepEqual(accept({ save: { method: 'merged, lora' } }).save.method, ['merged_16bit', 'lora'])
    assert.deepEqual(accept({ save: { method: 'none' } }).save.method, [])
  })

  it('trains embed_tokens and lm_head whole when they are targets', () => {
    const { lora } = accept({ lora: { target_modules: ['q_proj', 'lm_head', 'embed_tokens'] } })
    assert.deepEqual(lora.target_modules, ['q_proj'])
    assert.deepEqual(lora.modules_to_save, ['embed_tokens', 'lm_head'])
  })

  it('has defaults that depend on other keys', () => {
    const full = accept({ training: { training_type: 'full' } })
    assert.equal(full.training.learning_rate, 2e-5)
    assert.deepEqual(full.save.method, ['merged_16bit'])
    assert.equal(accept({ training: { training_type: 'full', learning_rate: 1e-3 } }).training.learning_rate, 1e-3)
    assert.equal(accept({ data: { dataset: 'x', eval_split: 'test' } }).training.eval_steps, 0.1)
    assert.equal(accept({ data: { dataset: 'x', eval_split: 0 } }).training.eval_steps, 0)
    assert.equal(accept({ data: { dataset: 'x', eval_split: 0.2 }, training: { eval_steps: 5 } }).training.eval_steps, 5)
  })

  it('settles warm-up: steps above 0 win over a ratio', () => {
    const warmup = (training: Document): unknown[] => {
      const recipe = accept({ training })
      return [recipe.training.warmup_steps, recipe.training.warmup_ratio, warmupSteps(recipe, 95)]
    }
    assert.deepEqual(warmup({}), [5, null, 5])
    assert.deepEqual(warmup({ warmup_ratio: 0.1 }), [0, 0.1, 10])
    assert.deepEqual(warmup({ warmup_ratio: 0.1, warmup_steps: 0 }), [0, 0.1, 10])
    assert.deepEqual(warmup({ warmup_ratio: 0.1, warmup_steps: 3 }), [3, null, 3])
    assert.deepEqual(warmup({ warmup_ratio: 0 }), [0, null, 0])
    assert.match(
      messages({ training: { warmup_ratio: 0.1, warmup_steps: 3 } }).join(),
      /^warning: training\.warmup_ratio has no effect/,
    )
  })

  it('treats an empty value as the default and says so', () => {
    const { recipe, issues } = validateRecipe({ ...base, training: { batch_size: null, run_name: null }, lora: null })
    assert.equal(recipe?.training.batch_size, 2)
    assert.deepEqual(
      issues.map((issue) => issue.code),
      ['empty'],
    )
  })

  it('gives itself back when a resolved recipe is validated again', () => {
    const recipe = accept({ training: { warmup_ratio: 0.1, optim: 'adamw_8bit' }, lora: { target_modules: 'lm_head,q_proj' } })
    assert.deepEqual(validateRecipe(recipe).recipe, recipe)
    assert.deepEqual(recipeSchema.parse(recipe), recipe)
  })
})

describe('recipe: problems', () => {
  it('names unknown keys and what was meant', () => {
    refuses({ training: { lerning_rate: 1 } }, /^training\.lerning_rate is not a key of a recipe; did you mean learning_rate\?$/)
    refuses({ trainig: {} }, /did you mean training\?/)
    refuses({ training: { lora_alpha: 1 } }, /lora_alpha belongs under lora/)
    refuses({ learning_rate: 1 }, /^learning_rate belongs under training: write training\.learning_rate$/)
    refuses({ training: { wholly_different: 1 } }, /^training\.wholly_different is not a key of a recipe$/)
    refuses({ training: { ['__proto__x']: 1, constructor: 2, toString: 3 } }, /training\.constructor is not a key/)
  })

  it('names wrong types and ranges in words', () => {
    refuses(
      { training: { learning_rate: '2e-4x' } },
      /^training\.learning_rate must be a number above 0 and below 1; "2e-4x" is not$/,
    )
    refuses({ training: { batch_size: 2.5 } }, /whole number from 1 to 4096; 2\.5 is not/)
    refuses({ training: { packing: 'maybe' } }, /must be true or false; "maybe" is not/)
    refuses({ training: { optim: 'adamw_8bitt' } }, /did you mean adamw_8bit\?/)
    refuses({ training: { eval_steps: 1.5 } }, /a whole number of steps, or a share/)
    refuses(
      { lora: { target_modules: ['ok', 'not ok'] } },
      /^lora\.target_modules\[1\] must be the name of a layer; "not ok" is not$/,
    )
    refuses({ lora: { modules_to_save: 'q_proj' } }, /embed_tokens or lm_head/)
    refuses({ lora: 'yes' }, /^lora must be a section/)
    refuses({ model: null }, /^model is missing/)
    refuses({ model: [] }, /^model must be a section/)
    refuses({ version: 2 }, /version must be 1/)
    refuses({ save: { max_shard_size: 'big' } }, /a size such as 5GB/)
    refuses({ hub: { repo_id: '../x' } }, /a repository such as/)
    refuses({ training: { run_name: 'x'.repeat(81) } }, /at most 80 characters/)
  })

  it("keeps Studio's limits", () => {
    const limits: readonly (readonly [
      section: string,
      key: string,
      low: number,
      tooLow: number,
      high: number,
      tooHigh: number,
    ])[] = [
      ['training', 'batch_size', 1, 0, 4096, 4097],
      ['training', 'gradient_accumulation_steps', 1, 0, 4096, 4097],
      ['training', 'max_steps', 1, -2, 1_000_000, 1_000_001],
      ['training', 'num_epochs', 1, -1, 1000, 1001],
      ['training', 'max_seq_length', 1, 0, 2_000_000, 2_000_001],
      ['training', 'learning_rate', 1e-9, 0, 0.999, 1],
      ['training', 'warmup_ratio', 0, -0.1, 1, 1.1],
      ['training', 'weight_decay', 0, -1, 10, 10.1],
      ['training', 'embedding_learning_rate', 1e-9, 0, 0.999, 1],
      ['lora', 'lora_r', 1, 0, 16384, 16385],
      ['lora', 'lora_alpha', 1, 0, 32768, 32769],
      ['lora', 'lora_dropout', 0, -0.1, 0.999, 1],
    ]
    for (const [section, key, low, tooLow, high, tooHigh] of limits) {
      accept({ [section]: { [key]: low } })
      accept({ [section]: { [key]: high } })
      refuses({ [section]: { [key]: tooLow } }, new RegExp(`${key} must be`))
      refuses({ [section]: { [key]: tooHigh } }, new RegExp(`${key} must be`))
    }
  })

  it('checks keys against each other', () => {
    refuses({ training: { num_epochs: 0 } }, /both 0: nothing would be trained/)
    refuses({ training: { max_steps: 3, warmup_steps: 4 } }, /warmup_steps \(4\) is more than training\.max_steps \(3\)/)
    refuses({ data: {} }, /say what to train on/)
    refuses({ data: { dataset: 'a', local_dataset: 'b' } }, /keep one/)
    refuses({ data: { dataset: 'a', eval_dataset: 'b', eval_split: 0.1 } }, /keep one/)
    refuses({ training: { training_type: 'full', load_in_4bit: true } }, /quantised weights cannot be trained/)
    refuses({ training: { load_in_8bit: true, load_in_4bit: true } }, /exclude each other/)
    refuses({ training: { training_type: 'full' }, save: { method: 'lora' } }, /needs an adapter/)
    refuses({ training: { training_type: 'full' }, lora: { init_adapter: 'x' } }, /full fine-tuning on an adapter/)
    refuses({ lora: { target_modules: ['all-linear', 'q_proj'] } }, /write it alone/)
    refuses({ lora: { target_modules: [] } }, /names no layer/)
    refuses({ lora: { layers_to_transform: [1], finetune_last_n_layers: 2 } }, /exclude each other/)
    assert.equal(
      accept({ training: { load_in_4bit: false }, lora: { init_lora_weights: 'pissa_niter_16' } }).lora.init_lora_weights,
      'pissa',
    )
    refuses({ lora: { layers_pattern: 'h' } }, /layers_pattern needs lora.layers_to_transform/)
    refuses({ lora: { target_modules: ['q_proj', '.*_proj'] } }, /a regular expression \(\.\*_proj\) stands alone/)
    refuses({ lora: { exclude_modules: '(q' } }, /lora.exclude_modules: \(q is not a regular expression/)
    assert.deepEqual(accept({ lora: { target_modules: '.*(q|v){1,2}_proj' } }).lora.target_modules, ['.*(q|v){1,2}_proj'])
    assert.deepEqual(accept({ lora: { target_modules: 'q_proj, self_attn.v_proj' } }).lora.target_modules, [
      'q_proj',
      'self_attn.v_proj',
    ])
    refuses({ training: { lr_scheduler_type: 'polynomial', lr_end: 0.1 } }, /must be less than training\.learning_rate/)
    refuses({ data: { dataset: 'a', chunk_size: 10, stride: 10 } }, /must be less than data\.chunk_size/)
    refuses({ hub: { push: true } }, /needs hub\.repo_id/)
  })

  it('drops the default warm-up in a very short run', () => {
    refuses({ training: { max_steps: 3, warmup_steps: 5 } }, /warmup_steps/)
    refuses({ lora: { use_loftq: true } }, /set training.load_in_4bit: true/)
    refuses({ training: { load_in_4bit: true }, lora: { init_lora_weights: 'pissa' } }, /pissa changes the weights/)
    refuses({ training: { load_in_4bit: true, training_type: 'full' } }, /quantised weights cannot be trained/)
    assert.equal(accept({ training: { max_steps: 3 } }).training.warmup_steps, 0)
  })

  it('warns about what has no effect', () => {
    const warns = (document: Document, pattern: RegExp): void => {
      accept(document)
      assert.match(messages(document).join('\n'), pattern)
    }
    warns({ training: { training_type: 'full' }, lora: { r: 8 } }, /warning: lora has no effect/)
    warns({ training: { eval_steps: 10 } }, /eval_steps has no effect without/)
    warns({ training: { embedding_learning_rate: 1e-5 } }, /embedding_learning_rate has no effect/)
    warns({ training: { save_total_limit: 2 } }, /save_total_limit has no effect/)
    warns({ training: { lr_scheduler_type: 'constant', warmup_steps: 3 } }, /warmup_steps has no effect/)
    warns({ training: { learning_rate: 0.5 } }, /typical range/)
    assert.deepEqual(messages({}), [])
  })

  it('names settings that are not available yet', () => {
    const recipe = accept({ training: { optim: 'paged_adamw_8bit' }, logging: { enable_wandb: true } })
    assert.deepEqual(
      unsupportedSettings(recipe).map((issue) => issue.path.join('.')),
      ['logging.enable_wandb'],
    )
    assert.deepEqual(unsupportedSettings(accept({})), [])
    const refused: readonly Document[] = [
      { lora: { init_lora_weights: 'olora' } },
      { save: { method: 'gguf' } },
      { model: { name: 'x', trust_remote_code: true } },
    ]
    for (const document of refused)
      assert.ok(validateRecipe({ ...base, ...document }).issues.some((issue) => issue.code === 'unavailable'))
  })

  it('reads devices by name and number, and memory as a size or in GiB', () => {
    const read = (training: Record<string, unknown>) => accept({ training }).training
    assert.deepEqual(
      ['GPU', 'cuda:1', 'CUDA:12', 'cpu'].map((device) => read({ device }).device),
      ['cuda', 'cuda:1', 'cuda:12', 'cpu'],
    )
    for (const device of ['cuda:', 'cuda:x', 'cuda:-1', 'cuda:1234', 'cudas', 1])
      refuses({ training: { device } }, /training\.device must be one of auto, cpu, cuda, cuda:N; /)
    const sizes = ['20GiB', '20', 20, 1.5, '512 MiB', '1GB', null, 'none']
    assert.deepEqual(
      sizes.map((max_memory) => read({ max_memory }).max_memory),
      [20, 20, 20, 1.5, 0.5, 1e9 / 2 ** 30, null, null],
    )
    for (const max_memory of ['much', '20 bananas', 0, -1, '-1GiB', { 0: '20GiB' }, true])
      refuses({ training: { max_memory } }, /training\.max_memory must be a size such as 20GiB or 20000MB, or a number of GiB; /)
    const { issues } = diagnoseRecipe('model: x\ndata:\n  dataset: y\ntraining:\n  max_memory: lots\n', 'finetune.yaml')
    assert.deepEqual(
      issues.map(({ range, message }) => [range.start.line, message.includes('lots')]),
      [[5, true]],
    )
  })

  it('says where keeping weights on the host has no effect', () => {
    assert.ok(
      messages({ training: { training_type: 'full', offload_embedding: true } }).some((text) =>
        text.includes('no effect with training_type: full'),
      ),
    )
    assert.ok(
      messages({ training: { device: 'cpu', offload_lm_head: true } }).some((text) =>
        text.includes('no effect on the processor'),
      ),
    )
    assert.deepEqual(messages({ training: { device: 'cuda:1', offload_embedding: true, offload_lm_head: true } }), [])
  })

  it('drops secrets with a warning that does not repeat them', () => {
    const secret = 'hf_verySecretToken'
    const { recipe, issues } = validateRecipe({
      ...base,
      logging: { hf_token: secret, wandb_token: secret },
      hub: { token: secret },
    })
    assert.deepEqual(
      issues.map((issue) => issue.code),
      ['secret', 'secret', 'secret'],
    )
    assert.ok(recipe)
    assert.ok(!JSON.stringify([recipe, issues]).includes(secret))
    assert.deepEqual(messages({ logging: { hf_token: null } }), [])
  })
})

describe('recipe: flags over a document', () => {
  const overlay = (document: Document, ...overrides: readonly (readonly [string, unknown])[]) =>
    validateRecipe(
      { ...base, ...document },
      { overrides: overrides.map(([path, value]) => ({ path, value, flag: `--${path}` })) },
    )

  it('overrides values, and the other way to say the same', () => {
    const { recipe } = overlay(
      { training: { max_steps: 10, warmup_steps: 2, lr: 1e-3 }, data: { dataset: 'x' } },
      ['training.num_epochs', '2'],
      ['training.warmup_ratio', '0.5'],
      ['training.learning_rate', '5e-5'],
      ['data.local_dataset', ['y']],
    )
    assert.ok(recipe)
    assert.deepEqual(
      [recipe.training.max_steps, recipe.training.num_epochs, recipe.training.warmup_steps, recipe.training.warmup_ratio],
      [0, 2, 0, 0.5],
    )
    assert.deepEqual([recipe.training.learning_rate, recipe.data.dataset, recipe.data.local_dataset], [5e-5, null, ['y']])
  })

  it('puts problems on the flag', () => {
    const { recipe, issues } = overlay({}, ['training.batch_size', 'many'])
    assert.equal(recipe, null)
    assert.equal(issues[0]!.flag, '--training.batch_size')
    assert.match(issues[0]!.message, /^--training\.batch_size must be a whole number/)
  })
})

describe('recipe: derived numbers', () => {
  it('counts steps, warm-up and evaluations', () => {
    const recipe = accept({
      training: { batch_size: 3, gradient_accumulation_steps: 2, num_epochs: 2, eval_steps: 0.25 },
      data: { dataset: 'x', eval_split: 5 },
    })
    assert.equal(effectiveBatch(recipe), 6)
    assert.equal(totalSteps(recipe, 13), 6)
    assert.equal(evalInterval(recipe, 6), 2)
    assert.equal(totalSteps(accept({ training: { max_steps: 7 } }), 1000), 7)
  })

  it('knows the cycles of a schedule', () => {
    assert.equal(schedulerCycles(accept({ training: { lr_scheduler_type: 'cosine' } })), 0.5)
    assert.equal(schedulerCycles(accept({ training: { lr_scheduler_type: 'cosine_with_restarts' } })), 1)
    assert.equal(schedulerCycles(accept({ training: { lr_scheduler_type: 'cosine', num_cycles: 2 } })), 2)
  })

  it('reads sizes', () => {
    assert.deepEqual(['5GB', '500 MB', '1.5KiB', '12', '2g'].map(parseByteSize), [5e9, 5e8, 1536, 12, 2e9])
    assert.throws(() => parseByteSize('much'), RangeError)
  })

  it('measures edits and finds what was meant', () => {
    assert.equal(editDistance('lerning', 'learning'), 1)
    assert.equal(editDistance('ab', 'ba'), 1)
    assert.equal(editDistance('', 'abc'), 3)
    assert.equal(editDistance('kitten', 'sitting'), 3)
    assert.equal(closest('learning-rat', ['learning_rate', 'lora_r']), 'learning_rate')
    assert.equal(closest('zzz', ['learning_rate', 'lora_r']), undefined)
  })
})
