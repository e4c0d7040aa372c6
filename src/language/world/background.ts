import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { describeError } from '#shared/errors.ts'
import type { RecipePlan, TokenFacts } from '../workspace.ts'
import { forgetModel, planRecipe, type PlanRequest } from './planRecipe.ts'
import { forgetTokenizer, tokenFacts, type TokenRequest } from './tokenFacts.ts'

/** Work that would hold up typing: it runs on a thread beside the server. */
export interface Background {
  plan(request: PlanRequest): Promise<RecipePlan>
  tokens(request: TokenRequest): Promise<TokenFacts>
  /** Models on the disk changed: nothing read before counts. */
  forget(): void
  dispose(): void
}

type Call =
  | { readonly kind: 'plan'; readonly request: PlanRequest }
  | { readonly kind: 'tokens'; readonly request: TokenRequest }
  | { readonly kind: 'forget' }
type Question = Call & { readonly id: number }
interface Answer {
  readonly id: number
  readonly value?: RecipePlan | TokenFacts | undefined
  readonly problem?: string
}

const threadRole = 'unsloth language background'

/** Whether this thread was started by `startBackground`. */
export const isBackground = (): boolean => !isMainThread && (workerData as { role?: unknown } | null)?.role === threadRole

async function answer(call: Call): Promise<RecipePlan | TokenFacts | undefined> {
  switch (call.kind) {
    case 'plan':
      return planRecipe(call.request)
    case 'tokens':
      return tokenFacts(call.request)
    case 'forget':
      forgetModel()
      forgetTokenizer()
      return undefined
  }
}

/** What the thread does: one question after the other. */
export function serveBackground(): void {
  let queue = Promise.resolve()
  parentPort?.on('message', (question: Question) => {
    queue = queue.then(async () => {
      const reply: Answer = await answer(question).then(
        (value) => ({ id: question.id, value }),
        (error: unknown) => ({ id: question.id, problem: describeError(error) }),
      )
      parentPort?.postMessage(reply)
    })
  })
}

/** A thread that runs the module `file`, which has to call `serveBackground` there. It starts with the first question. */
export function startBackground(file: string): Background {
  let worker: Worker | undefined
  let next = 1
  const waiting = new Map<number, { resolve: (value: never) => void; reject: (error: Error) => void }>()
  const fail = (error: Error): void => {
    worker = undefined
    for (const { reject } of waiting.values()) reject(error)
    waiting.clear()
  }
  const start = (): Worker => {
    const thread = new Worker(file, {
      workerData: { role: threadRole },
      argv: [],
      resourceLimits: { maxOldGenerationSizeMb: 1024 },
    })
    thread.unref()
    thread.on('message', ({ id, value, problem }: Answer) => {
      const asked = waiting.get(id)
      waiting.delete(id)
      if (problem === undefined) asked?.resolve(value as never)
      else asked?.reject(new Error(problem))
    })
    thread.on('error', (error) => fail(error instanceof Error ? error : new Error(String(error))))
    thread.on('exit', () => {
      if (thread === worker) fail(new Error('the background thread ended'))
    })
    return thread
  }
  const ask = <T>(call: Call): Promise<T> =>
    new Promise((resolve, reject) => {
      worker ??= start()
      const id = next++
      waiting.set(id, { resolve, reject })
      worker.postMessage({ ...call, id })
    })
  return {
    plan: (request) => ask({ kind: 'plan', request }),
    tokens: (request) => ask({ kind: 'tokens', request }),
    forget: () => {
      if (worker !== undefined) void ask({ kind: 'forget' }).catch(() => undefined)
    },
    dispose: () => {
      const thread = worker
      worker = undefined
      void thread?.terminate()
    },
  }
}

/** The same work on this thread, for tests and for callers that wait anyway. */
export const foreground: Background = {
  plan: planRecipe,
  tokens: tokenFacts,
  forget: () => {
    forgetModel()
    forgetTokenizer()
  },
  dispose: () => undefined,
}
