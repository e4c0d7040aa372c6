import { UnslothError } from '#shared/errors.ts'
import {
  engineNotifications,
  type DoctorResult,
  type GeneratedText,
  type GenerateParams,
  type GenerateResult,
  type InspectResult,
  type PlanResult,
  type VerifyResult,
} from '#shared/protocol.ts'
import { effectiveBatch, type Recipe, type RecipeOverride } from '#shared/recipe.ts'
import { dirname } from 'node:path'
import { chatTemplateFor, encodeRendered } from '../data/chatTemplate.ts'
import { FastLanguageModel } from '../fastLanguageModel.ts'
import type { TextGenerator } from '../generate/textGenerator.ts'
import { parameterCount } from '../model/weightTable.ts'
import { formatRecipe } from '../recipe/formatRecipe.ts'
import { diagnoseRecipe } from '../recipe/parseRecipe.ts'
import { resolveRecipePaths } from '../recipe/recipePaths.ts'
import { chooseDevice, deviceName, freeBytes } from '../runtime/chooseDevice.ts'
import { resolveModel } from '../runtime/resolveModel.ts'
import { prepareRun } from '../train/prepareRun.ts'
import { compare } from '../verify/compare.ts'
import { CaseComputation } from '../verify/compute.ts'
import { Golden } from '../verify/golden.ts'
import { devices } from './devices.ts'
import { diagnostic, problemOf } from './diagnostics.ts'
import { PreviewCache } from './previewData.ts'
import type { EngineHandlers, ServeContext } from './serve.ts'

export interface HandlerOptions {
  readonly inspect: (path: string, limit: number) => Promise<InspectResult>
  readonly doctor: () => Promise<DoctorResult>
}

/** The engine's answers to an editor. */
export function engineHandlers(options: HandlerOptions): EngineHandlers {
  const generators = new GeneratorCache()
  const previews = new PreviewCache()
  return {
    plan: ({ recipe, path, overrides }) => plan(recipe, path ?? 'finetune.yaml', overrides ?? {}),
    preview: (params, context) => previews.preview(params, context),
    inspect: ({ path, limit }) => options.inspect(path, limit ?? 1000),
    generate: (params, context) => generators.generate(params, context),
    verify: ({ path, skip }) => verify(path, skip ?? []),
    doctor: () => options.doctor(),
    devices: () => devices(),
  }
}

async function plan(text: string, path: string, values: Readonly<Record<string, unknown>>): Promise<PlanResult> {
  const overrides: RecipeOverride[] = Object.entries(values).map(([key, value]) => ({ path: key, value, flag: key }))
  const { recipe, issues } = diagnoseRecipe(text, path, { overrides })
  const diagnostics = issues.map(diagnostic)
  if (recipe === null) return { diagnostics }
  const absolute = resolveRecipePaths(recipe, dirname(path))
  const resolved = formatRecipe(absolute)
  try {
    return { diagnostics, resolved, ...(await planSummary(absolute)) }
  } catch (error) {
    return { diagnostics: [...diagnostics, problemOf(error)], resolved }
  }
}

async function planSummary(recipe: Recipe): Promise<Pick<PlanResult, 'summary'>> {
  const prepared = await prepareRun(recipe)
  const { patched } = prepared.model
  const { spec, entries } = patched.model
  return {
    summary: {
      model: {
        name: recipe.model.name,
        architecture: spec.architecture,
        layers: spec.layers,
        hiddenSize: spec.hidden,
        contextLength: spec.context,
        parameters: parameterCount(entries),
        trainableParameters: patched.layout.parameters.reduce((sum, { rows, cols }) => sum + rows * cols, 0),
      },
      device: deviceName(prepared.model.device),
      memory: {
        parts: prepared.plan.parts,
        totalBytes: prepared.plan.totalBytes,
        availableBytes: freeBytes(prepared.model.device),
      },
      steps: {
        total: prepared.totalSteps,
        epochs: prepared.epochOf(prepared.totalSteps),
        samples: prepared.samples.length,
        effectiveBatch: effectiveBatch(recipe),
      },
      patches: prepared.model.patchReport,
    },
  }
}

async function verify(path: string, skip: readonly string[]): Promise<VerifyResult> {
  const golden = await Golden.open(path)
  const computation = new CaseComputation(golden, { device: chooseDevice('cpu'), compute: 'float32' })
  await computation.run()
  const rows = (await compare(golden, computation.quantities, new Set(skip))).map(({ name, error, tolerance, verdict }) => ({
    quantity: name,
    relativeError: Number.isFinite(error) ? error : null,
    tolerance,
    passed: verdict === 'ok' || verdict === 'skipped',
    ...(verdict === 'ok' || verdict === 'wrong' ? {} : { note: verdict }),
  }))
  return { passed: rows.every(({ passed }) => passed), rows }
}

/** Keeps the last model loaded, so that base and tuned text come from one set of weights and a second question is quick. */
class GeneratorCache {
  private key = ''
  private generator: TextGenerator | undefined
  private queue: Promise<unknown> = Promise.resolve()

  /** One at a time: the device computes one thing anyway. */
  generate(params: GenerateParams, context: ServeContext) {
    const answer = this.queue.then(() => this.answer(params, context))
    this.queue = answer.catch(() => undefined)
    return answer
  }

  private async answer(params: GenerateParams, { signal, notify }: ServeContext): Promise<GenerateResult> {
    const { id, withBase = false } = params
    if (withBase && params.adapter === undefined)
      throw new UnslothError('USAGE', 'Without an adapter there is nothing to show beside the base model.')
    const generator = await this.open(params)
    const { tokenizer } = generator
    if ((params.prompt === undefined) === (params.messages === undefined))
      throw new UnslothError('USAGE', 'Give a prompt or messages.')
    const ids =
      params.prompt !== undefined
        ? tokenizer.encode(params.prompt, { addSpecialTokens: true })
        : encodeRendered(
            tokenizer,
            chatTemplateFor(tokenizer).render(
              params.messages!.map((message) => ({ ...message })),
              { addGenerationPrompt: true },
            ),
          )
    const began = performance.now()
    const { sampling = {} } = params
    const isBase = withBase ? [false, true] : [params.adapter === undefined]
    const ended = isBase.map(() => 0)
    const made = await generator.complete(
      isBase.map(() => ids),
      {
        maxNewTokens: sampling.maxNewTokens ?? 256,
        stop: sampling.stop ?? [],
        seed: sampling.seed ?? 3407,
        base: isBase,
        signal,
        sampling: {
          temperature: sampling.temperature ?? 0.7,
          topK: sampling.topK ?? 40,
          topP: sampling.topP ?? 0.9,
          minP: sampling.minP ?? 0,
          repetitionPenalty: sampling.repetitionPenalty ?? 1.1,
        },
        onText: (prompt, text) => {
          ended[prompt] = performance.now() - began
          notify(engineNotifications.generated, { id, text, tokens: 1, ...(withBase && isBase[prompt]! ? { base: true } : {}) })
        },
      },
    )
    const [first, base] = made.map(({ text, promptTokens, newTokens, reason }, prompt): GeneratedText => ({
      text,
      promptTokens,
      newTokens,
      stopReason: reason,
      seconds: ended[prompt]! / 1000,
    }))
    return { ...first!, ...(base === undefined ? {} : { base }) }
  }

  /** A base model is answered by one that has an adapter loaded, when that is there. */
  private async open({ model, adapter, device }: GenerateParams): Promise<TextGenerator> {
    const resolved = await resolveModel(model)
    const wanted = adapter ?? resolved.adapter
    const key = `${resolved.folder}\n${wanted ?? ''}\n${device ?? ''}`
    if (
      this.generator !== undefined &&
      (key === this.key ||
        (wanted === undefined && this.key.startsWith(`${resolved.folder}\n`) && this.key.endsWith(`\n${device ?? ''}`)))
    )
      return this.generator
    this.generator?.dispose()
    this.generator = undefined
    const on = (name: string) =>
      FastLanguageModel.forInference({ modelName: resolved.folder, adapter: wanted, device: chooseDevice(name) })
    this.generator = await on(device ?? 'auto').catch((error: unknown) => {
      // A GPU that trains may have no room; nobody asked for it.
      if (device === undefined && UnslothError.is(error, 'MEMORY')) return on('cpu')
      throw error
    })
    this.key = key
    return this.generator
  }
}
