import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { executeRun } from '../../engine/cli/runLauncher.ts'
import { parseRecipe } from '../../engine/recipe/parseRecipe.ts'
import { connectToRun } from '../../engine/run/controlClient.ts'
import { FastLanguageModel } from '../../engine/fastLanguageModel.ts'
import { listCheckpoints } from '../../engine/run/checkpoints.ts'
import { RunDirectory } from '../../engine/run/runDirectory.ts'
import { prepareRun } from '../../engine/train/prepareRun.ts'
import { planTraining, type TrainingPlan } from '../../engine/train/trainingPlan.ts'
import {
  adapterBytes,
  createRun,
  eventsOf,
  makeRecipe,
  metricsOf,
  ownRuntimeFolder,
  temporaryFolder,
  train,
  type RecipeSections,
} from './support.ts'

/** Every file of a folder by its content. */
const contents = (folder: string): Map<string, string> =>
  new Map(
    readdirSync(folder)
      .sort()
      .map((name) => [name, readFileSync(join(folder, name), 'base64')]),
  )

describe('bit for bit', () => {
  const folder = temporaryFolder()
  ownRuntimeFolder(folder)
  const sections: RecipeSections = {
    data: { eval_split: 4 },
    training: { max_steps: 6, save_steps: 1, eval_steps: 2, batch_size: 5, lr_scheduler_type: 'cosine', warmup_steps: 2 },
    lora: { lora_dropout: 0.1 },
  }
  const recipeWith = (training: Record<string, unknown>, more: RecipeSections = {}) =>
    makeRecipe(folder, { ...sections, ...more, training: { ...sections.training, ...training } })
  let reference = ''

  before(async () => {
    reference = await train(recipeWith({}))
    assert.equal(listCheckpoints(join(reference, 'checkpoints')).length, 5)
  })

  function assertEqual(dir: string, from = 0): void {
    assert.deepEqual(
      metricsOf(dir),
      metricsOf(reference).filter(({ step }) => (step as number) > from),
    )
    assert.ok(adapterBytes(dir).equals(adapterBytes(reference)), 'the adapters differ')
  }

  it('two runs give equal files', async () => {
    const again = await train(recipeWith({}))
    assertEqual(again)
    assert.deepEqual(contents(join(again, 'adapter')), contents(join(reference, 'adapter')))
    const [mine, theirs] = [again, reference].map((dir) => listCheckpoints(join(dir, 'checkpoints')))
    theirs!.forEach(({ path, step }, i) => {
      for (const name of ['adapter_model.safetensors', 'optimizer.safetensors'])
        assert.ok(readFileSync(join(mine![i]!.path, name)).equals(readFileSync(join(path, name))), `${name} of step ${step}`)
    })
  })

  it('another seed gives another adapter', async () => {
    assert.ok(!adapterBytes(await train(recipeWith({ random_seed: 1 }))).equals(adapterBytes(reference)))
  })

  for (const threads of [2, 3]) it(`${threads} threads equal one`, async () => assertEqual(await train(recipeWith({ threads }))))

  it('every layer recomputed equals all saved', async () => {
    const recipe = recipeWith({ gradient_checkpointing: 'full' })
    assert.equal((await prepareRun(recipe)).plan.recompute, 'layer')
    assert.equal((await prepareRun(recipeWith({}))).plan.recompute, 'none')
    assertEqual(await train(recipe))
  })

  it('what some or all layers recompute equals what is saved', async () => {
    const prepared = await prepareRun(recipeWith({}))
    const results = []
    for (const room of [undefined, 'mixed', 'layer'] as const) results.push(await steps(prepared, room))
    assert.deepEqual(
      results.map(({ recompute }) => recompute),
      ['none', 'mixed', 'layer'],
    )
    for (const { values } of results.slice(1)) assert.deepEqual(values, results[0]!.values)
  })

  /** Three steps with as much memory as the wanted plan needs: `auto` recomputes what does not fit. */
  async function steps(prepared: Awaited<ReturnType<typeof prepareRun>>, wanted: 'mixed' | 'layer' | undefined) {
    const model = await FastLanguageModel.fromPretrained({ modelName: join(prepared.model.patched.model.folder), threads: 2 })
    model.getPeftModel({ r: 4, loraDropout: 0.1, targetModules: 'all-linear' })
    const checkpointing = wanted === 'layer' ? 'full' : 'auto'
    const planFor = (availableBytes: number): TrainingPlan =>
      planTraining(model.patched, {
        checkpointing,
        longestSample: 256,
        longestStep: 1280,
        sequences: 5,
        evaluates: false,
        availableBytes,
        threads: 2,
      })
    let plan = planFor(1e9)
    while (wanted !== undefined && plan.recompute !== wanted) plan = planFor(plan.totalBytes - 1)
    try {
      await model.load()
      const trainer = model.trainer(plan, { maxGradNorm: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.01 })
      const values: unknown[] = []
      for (let step = 0; step < 3; ++step)
        values.push(await trainer.step(step, prepared.batches(step), { default: 1e-3, embedding: 1e-3 }))
      for (const { name } of model.patched.layout.parameters) values.push(trainer.model.readParameter(name))
      return { recompute: plan.recompute, values }
    } finally {
      model.dispose()
    }
  }

  it('resumed from each checkpoint equals uninterrupted', async () => {
    for (const { path, step } of listCheckpoints(join(reference, 'checkpoints'))) {
      const resumed = await train(recipeWith({ resume_from: path, save_steps: 0 }))
      assertEqual(resumed, step)
      assert.deepEqual(
        eventsOf(resumed)
          .filter(({ event }) => event === 'resume')
          .map((event) => event.step),
        [step],
      )
    }
  })

  it('a full fine-tune resumed equals uninterrupted', async () => {
    const full: RecipeSections = { lora: {}, save: { method: ['merged_16bit'] } }
    const training = { training_type: 'full', learning_rate: 1e-3 }
    const whole = await train(recipeWith(training, full))
    const [, second] = listCheckpoints(join(whole, 'checkpoints'))
    const resumed = await train(recipeWith({ ...training, resume_from: second!.path }, full))
    assert.deepEqual(
      metricsOf(resumed),
      metricsOf(whole).filter(({ step }) => (step as number) > 2),
    )
    assert.ok(
      readFileSync(join(resumed, 'merged', 'model.safetensors')).equals(readFileSync(join(whole, 'merged', 'model.safetensors'))),
    )
  })

  it('paused and resumed equals uninterrupted', async () => {
    let dir = ''
    let paused = 0
    const events = {
      onStep({ step }: { step: number }) {
        if (step === 2 || step === 4) void ask('pause')
      },
      onState(state: string) {
        if (state !== 'paused') return
        ++paused
        void ask('resume')
      },
    }
    const ask = async (what: 'pause' | 'resume') => {
      const control = await connectToRun(dir)
      await control[what]()
      control.close()
    }
    const recipe = recipeWith({ max_steps: 30, save_steps: 0, eval_steps: 10 })
    const whole = await train(recipe)
    dir = createRun(recipe).dir
    assert.equal(await executeRun(dir, events), 'finished')
    assert.ok(paused >= 1)
    assert.equal(eventsOf(dir).filter(({ event }) => event === 'pause').length, paused)
    assert.deepEqual(metricsOf(dir), metricsOf(whole))
    assert.ok(adapterBytes(dir).equals(adapterBytes(whole)))
  })

  it('the frozen recipe of a run makes the same run', async () => {
    const frozen = RunDirectory.open(reference).recipe()
    assertEqual(await train(parseRecipe(frozen, 'recipe.yaml').recipe))
  })
})
