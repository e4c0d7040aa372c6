import { readFile } from 'node:fs/promises'
import { UnslothError } from '#shared/errors.ts'
import { parseJson, isJsonObject } from '../io/jsonText.ts'
import { tokenizerFileNames } from '../io/modelFolder.ts'
import { quote } from '../io/printable.ts'
import { indexFile, weightsFile } from '../io/tensorSource.ts'
import { parseRepository } from './repository.ts'
import { Snapshot, type HubOptions } from './snapshot.ts'

/** Files of the top folder, beside weights, that a model, an adapter or its tokenizer is read from or saved with. */
const smallFiles = new Set(['config.json', 'generation_config.json', 'adapter_config.json', ...tokenizerFileNames])
const adapterWeights = 'adapter_model.safetensors'

/** A model or adapter in the cache. */
export interface HubModel {
  /** In Hub layout: config, tokenizer, safetensors. */
  readonly folder: string
  readonly id: string
  readonly commit: string
}

/** What a repository without safetensors has instead, and what to do about it. */
function noWeights({ repository: { id }, files, complete }: Snapshot): UnslothError {
  if (!complete)
    return new UnslothError(
      'HUB',
      `${id} is in the Hub cache only in part: its weights were never fetched, and nothing is fetched now.`,
      { hint: 'Unset HF_HUB_OFFLINE once: what is there is not fetched again.' },
    )
  const has = (pattern: RegExp): boolean => [...files.keys()].some((path) => pattern.test(path))
  const [what, hint] = has(/\.gguf$/i)
    ? ['only GGUF files', 'Training needs the original model: its card usually links to it as the base model.']
    : has(/\.(?:bin|pth?|ckpt)$/i)
      ? [
          'only PyTorch checkpoints (.bin), which are programs and are not run',
          `Look for a revision with safetensors at ${'“Community”'} on its page, often refs/pr/1, and name it in model.revision; or convert the model.`,
        ]
      : has(/\.(?:h5|msgpack|onnx|tflite)$/i)
        ? ['only weights of other frameworks', 'Name a repository with safetensors.']
        : ['no weights', 'Name a repository with config.json and safetensors.']
  return new UnslothError('HUB', `${id} has ${what}; no ${weightsFile} and no ${indexFile} in its top folder.`, { hint })
}

async function shardsOf(snapshot: Snapshot): Promise<string[]> {
  await snapshot.fetch([indexFile])
  const where = snapshot.path(indexFile)
  const index = parseJson(await readFile(where, 'utf8'), { file: where, duplicateKeys: 'last', python: true })
  const map = isJsonObject(index) ? index.weight_map : undefined
  const names = isJsonObject(map) ? [...new Set(Object.values(map))] : []
  if (names.length === 0)
    throw new UnslothError('HUB', `${snapshot.repository.id}: ${indexFile} names no weight files.`, {
      hint: 'The repository is damaged; try another revision.',
    })
  return names.map((name) => {
    if (typeof name === 'string' && snapshot.files.has(name)) return name
    // Offline the files that are there are all that is known.
    const why = snapshot.complete ? 'which the repository does not have' : 'which was never fetched'
    throw new UnslothError('HUB', `${snapshot.repository.id}: ${indexFile} names ${quote(String(name))}, ${why}.`, {
      hint: snapshot.complete
        ? 'The repository is incomplete; try another revision.'
        : 'Unset HF_HUB_OFFLINE once: what is there is not fetched again.',
    })
  })
}

/** The weight files to read: what the engine reads from such a folder, and none of their duplicates in other formats. */
async function weightFiles(snapshot: Snapshot): Promise<string[]> {
  const { files } = snapshot
  if (files.has('adapter_config.json') && !files.has('config.json')) {
    if (files.has(adapterWeights)) return [adapterWeights]
    throw noWeights(snapshot)
  }
  if (files.has(weightsFile)) return [weightsFile]
  if (files.has(indexFile)) return shardsOf(snapshot)
  throw noWeights(snapshot)
}

function checkKind({ repository: { id }, files }: Snapshot): void {
  const [model, adapter] = ['config.json', 'adapter_config.json'].map((name) => files.has(name))
  if (model && adapter)
    throw new UnslothError('MODEL_INVALID', `${id} has a LoRA adapter (adapter_config.json) and a base model (config.json).`, {
      hint: 'It is not clear which one is meant: fetch it and keep them in two folders.',
    })
  if (!model && !adapter)
    throw new UnslothError('HUB', `${id} is no model: it has neither config.json nor adapter_config.json.`, {
      hint: files.has('model_index.json')
        ? 'It is a diffusion model, which is not supported.'
        : [...files.keys()].some((path) => /\.gguf$/i.test(path))
          ? 'It has GGUF files: training needs the original model, which its card usually links to.'
          : 'Check the name.',
    })
}

/** Whether a model of this name could be on the Hub. */
export const couldBeModel = (name: string): boolean => {
  try {
    return parseRepository('model', name) !== undefined
  } catch {
    return true
  }
}

/**
 * The folder of a model or adapter of the Hub, fetched into the cache as far as it is not there: configuration, tokenizer and
 * safetensors, not the same weights in other formats.
 */
export async function fetchModel(name: string, revision: string | null | undefined, options: HubOptions = {}): Promise<HubModel> {
  const repository = parseRepository('model', name, revision)
  if (repository === undefined)
    throw new UnslothError('HUB', `${quote(name)} is no name of a repository.`, { hint: 'Names look like Qwen/Qwen2.5-0.5B.' })
  const snapshot = await Snapshot.open(repository, options)
  checkKind(snapshot)
  const small = [...snapshot.files.keys()].filter((path) => smallFiles.has(path))
  const weights = await weightFiles(snapshot)
  await snapshot.fetch([...small, ...weights])
  return { folder: snapshot.folder, id: repository.id, commit: snapshot.commit }
}
