import { UnslothError } from '#shared/errors.ts'
import type { DecoderWeights } from '../model/decoder.ts'
import { cacheBytes, logitsPlan } from '../model/stepGraph.ts'
import type { LoadedModel } from '../runtime/loadedModel.ts'
import { StepRunner, type PackedTokens } from '../runtime/stepRunner.ts'
import { sampleToken, uniform, type SamplingOptions } from './sampler.ts'

/** One prompt of a batch. */
export interface GenerationRequest {
  readonly ids: Int32Array
  readonly seed: number
  /** Which of the generator's weights; the first when absent. */
  readonly voice?: number
  /** Instead of the batch's. */
  readonly maxNewTokens?: number
}

export interface GenerationOptions {
  readonly maxNewTokens: number
  readonly sampling: SamplingOptions
  /** Ids that end a text. */
  readonly stopIds: ReadonlySet<number>
  /** Called with each new token; returning true ends that text. */
  readonly onToken?: (request: number, id: number) => boolean
  /** Ends all texts where they are. */
  readonly signal?: AbortSignal
}

/** Longest stretch of a prompt that runs at once. */
const prefillTokens = 512

interface Row {
  readonly request: number
  readonly voice: number
  readonly seed: number
  readonly ids: number[]
  readonly maxNewTokens: number
  /** Tokens whose keys and values are in the cache. */
  cached: number
  readonly prompt: number
}

/** Plans over one set of weights: for prompts, and for one token of each text. */
interface Voice {
  readonly runner: StepRunner
  readonly decoder: StepRunner
}

/**
 * Token generation with a key/value cache over any sets of weights of a loaded model. Prompts of a batch run packed, each with its
 * own stretch of the cache, so that a text never depends on its neighbours. Texts of several sets of weights grow in turn, token by
 * token.
 */
export class Generator {
  private readonly model: LoadedModel
  private readonly voices: readonly Voice[]
  private readonly rowsPerText: number
  private readonly batch: number

  /** `maxLength`: prompt and new tokens of one text together. */
  constructor(
    model: LoadedModel,
    weights: DecoderWeights | readonly DecoderWeights[],
    options: { batch: number; maxLength: number },
  ) {
    const { spec, runtime, target } = model
    this.model = model
    this.batch = options.batch
    this.rowsPerText = options.maxLength
    const cache = { rows: options.batch * options.maxLength }
    runtime.reserve('cache', cacheBytes(spec, cache, target.activation))
    const capacity = {
      tokens: Math.max(options.batch, Math.min(prefillTokens, options.batch * options.maxLength)),
      labelled: options.batch,
      sequences: options.batch,
    }
    // One token of each text: few enough rows that a GPU multiplies 4-bit weights as they are.
    const each = { tokens: options.batch, labelled: options.batch, sequences: options.batch }
    this.voices = [weights].flat().map((voice): Voice => {
      const plan = (room: typeof each) =>
        new StepRunner(runtime, spec, logitsPlan({ spec, weights: voice, capacity: room, target, cache }))
      const runner = plan(capacity)
      return { runner, decoder: model.patched.arena.isQuantised && options.batch < capacity.tokens ? plan(each) : runner }
    })
  }

  /** The new tokens of each prompt, the ending id not included. */
  async generate(requests: readonly GenerationRequest[], options: GenerationOptions): Promise<number[][]> {
    if (requests.length > this.batch)
      throw new UnslothError('INTERNAL', `${requests.length} prompts for a batch of ${this.batch}`)
    const rows = requests.map(({ ids, seed, voice = 0, maxNewTokens = options.maxNewTokens }, request): Row => ({
      request,
      voice,
      seed,
      ids: [...ids],
      maxNewTokens,
      cached: 0,
      prompt: ids.length,
    }))
    for (const row of rows) {
      if (row.prompt === 0)
        throw new UnslothError('USAGE', 'The prompt has no tokens.', {
          hint: 'Write at least one word, or use a tokenizer that adds a beginning-of-text token.',
        })
      if (row.prompt + row.maxNewTokens > this.rowsPerText)
        throw new UnslothError(
          'USAGE',
          `A prompt of ${row.prompt} tokens and ${row.maxNewTokens} new ones exceed the ${this.rowsPerText} positions reserved.`,
          { hint: 'Shorten the prompt or ask for fewer new tokens.' },
        )
    }
    let active = rows.filter(({ maxNewTokens }) => maxNewTokens > 0)
    while (active.length > 0) {
      if (options.signal?.aborted === true) break
      const logits = new Map<Row, Float32Array>()
      for (const [index, voice] of this.voices.entries()) {
        const mine = active.filter((row) => row.voice === index)
        if (mine.length > 0) for (const [row, found] of await this.advance(voice, mine)) logits.set(row, found)
      }
      active = active.filter((row) => {
        const mine = logits.get(row)
        if (mine === undefined) return true
        const made = row.ids.length - row.prompt
        const id = sampleToken(mine, row.ids, options.sampling, uniform(row.seed, made))
        if (options.stopIds.has(id)) return false
        row.ids.push(id)
        const ended = options.onToken?.(row.request, id) ?? false
        return !ended && made + 1 < row.maxNewTokens
      })
    }
    return rows.map((row) => row.ids.slice(row.prompt))
  }

  /** Runs tokens that are not in the cache yet, as many as the plan takes; logits of the rows that are complete then. */
  private async advance(voice: Voice, rows: readonly Row[]): Promise<Map<Row, Float32Array>> {
    let room = voice.runner.step.capacity.tokens
    const steps: { row: Row; from: number; to: number }[] = []
    for (const row of rows) {
      const to = Math.min(row.ids.length, row.cached + room)
      if (to === row.cached) continue
      steps.push({ row, from: row.cached, to })
      room -= to - row.cached
    }
    const finished = steps.filter(({ row, to }) => to === row.ids.length)
    await this.model.refreshShadow()
    const runner = steps.every(({ from, to }) => to - from === 1) ? voice.decoder : voice.runner
    await runner.run(this.pack(steps))
    for (const { row, to } of steps) row.cached = to
    const { vocabulary } = this.model.spec
    const logits = runner.read('logits', finished.length)
    return new Map(finished.map(({ row }, index) => [row, logits.subarray(index * vocabulary, (index + 1) * vocabulary)]))
  }

  private pack(steps: readonly { row: Row; from: number; to: number }[]): PackedTokens {
    const tokens = steps.reduce((sum, { from, to }) => sum + to - from, 0)
    const packed = {
      ids: new Int32Array(tokens),
      positions: new Int32Array(tokens),
      slots: new Int32Array(tokens),
      qStart: new Int32Array(steps.length + 1),
      kvStart: new Int32Array(steps.length),
      kvLength: new Int32Array(steps.length),
      ropeLength: new Int32Array(steps.length),
    }
    const labelIndex: number[] = []
    let at = 0
    steps.forEach(({ row, from, to }, index) => {
      const base = row.request * this.rowsPerText
      packed.qStart[index] = at
      packed.kvStart[index] = base
      packed.kvLength[index] = to
      packed.ropeLength[index] = row.prompt + row.maxNewTokens
      for (let position = from; position < to; ++position, ++at) {
        packed.ids[at] = row.ids[position]!
        packed.positions[at] = position
        packed.slots[at] = base + position
      }
      if (to === row.ids.length) labelIndex.push(at - 1)
    })
    packed.qStart[steps.length] = at
    return { ...packed, labelIndex: Int32Array.from(labelIndex) }
  }
}
