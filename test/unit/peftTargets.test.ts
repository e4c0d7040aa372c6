import { strict as assert } from 'node:assert'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { WeightEntry } from '../../engine/model/weightTable.ts'
import { weightTable } from '../../engine/model/weightTable.ts'
import { archSpec } from '../../engine/model/registry.ts'
import type { HfConfig } from '../../engine/model/config.ts'
import { loraModules, trainedBiases } from '../../engine/patch/lora.ts'
import { parameterLayout } from '../../engine/patch/parameters.ts'
import { loraTraining } from '../../engine/patch/peftOptions.ts'
import { projectRoot } from '../../engine/projectRoot.ts'
import { parseRecipe } from '../../engine/recipe/parseRecipe.ts'
import { peftOptions } from '../../engine/train/recipeTraining.ts'
import { failure } from './io/support.ts'
import { untiedHead, type ModelDescription } from '../../engine/runtime/patchedModel.ts'

/** Made by test/golden/targets.py: what PEFT adapts with some options, [rank, scale] each, and [rate, decays] of other parameters in LoRA+. */
interface PeftCase {
  readonly config: HfConfig
  readonly options: Readonly<Record<string, unknown>>
  readonly modules: Readonly<Record<string, [rank: number, scale: number]>>
  readonly loraplus: Readonly<Record<string, [rate: number, decays: boolean]>>
}

const cases = JSON.parse(readFileSync(join(projectRoot(), 'test', 'fixtures', 'peft', 'targets.json'), 'utf8')) as PeftCase[]

function training({ options }: PeftCase, entries: readonly WeightEntry[]) {
  const lora = { lora_r: 4, lora_alpha: 8, loraplus_lr_ratio: 16, ...options }
  const { recipe } = parseRecipe(
    JSON.stringify({ version: 1, model: 'm', data: { dataset: 'me/data' }, lora, save: { method: ['lora'] } }),
    'test.yaml',
  )
  const made = loraTraining(peftOptions(recipe, Math.max(...entries.map(({ layer }) => layer)) + 1))
  assert.ok(made.kind === 'lora')
  return made
}

describe('the modules that PEFT adapts', () => {
  for (const one of cases)
    it(`${one.config.model_type as string} ${JSON.stringify(one.options)}`, () => {
      const spec = archSpec(one.config)
      const entries = weightTable(spec)
      const lora = training(one, entries)
      const modules = loraModules(entries, lora)
      // transformers calls GPT-2's layers `transformer.h`, as the table does.
      assert.deepEqual(
        Object.fromEntries(modules.map(({ module, rank, scale }) => [module, [rank, Number(scale.toFixed(9))]]).sort()),
        Object.fromEntries(Object.entries(one.modules).sort()),
      )
      const saved = lora.modulesToSave.map(
        (name) =>
          entries.find(({ id }) => id === { lm_head: 'head', embed_tokens: 'embedding' }[name]) ??
          untiedHead({ entries, spec } as unknown as ModelDescription),
      )
      const { parameters } = parameterLayout(
        [...saved, ...trainedBiases(entries, modules, lora.bias)],
        modules,
        false,
        'f32',
        true,
      )
      const rates = parameters
        .filter(({ name }) => !/lora_[AB]/.test(name))
        .map(({ name, group, decay }) => [name, [group === 'loraB' ? 16 : 1, decay]])
      assert.deepEqual(Object.fromEntries(rates.sort()), Object.fromEntries(Object.entries(one.loraplus).sort()))
      assert.ok(
        parameters.every(
          ({ name, group, decay }) =>
            !/lora_[AB]/.test(name) || (decay && group === (name.includes('lora_B') ? 'loraB' : 'default')),
        ),
      )
    })

  it('no experts with DoRA, as PEFT says too', () => {
    const entries = weightTable(
      archSpec({
        ...cases[0]!.config,
        architectures: ['MixtralForCausalLM'],
        model_type: 'mixtral',
        num_local_experts: 4,
        num_experts_per_tok: 2,
      }),
    )
    const options = { r: 2, alpha: 2, dropout: 0, rslora: false, dora: true }
    assert.throws(
      () => loraModules(entries, { ...options, targets: ['q_proj', 'down_proj'] }),
      failure('RECIPE', /use_dora is not possible with adapters on experts \(down_proj\)/),
    )
    assert.ok(loraModules(entries, { ...options, targets: ['q_proj'] }).every(({ dora }) => dora === true))
  })
})
