import assert from 'node:assert/strict'
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { readJsonObject, readModelFolder } from '../../../engine/io/modelFolder.ts'
import { pythonJson } from '../../../engine/io/pythonJson.ts'
import { failure, fixture, useFolder } from './support.ts'

describe('model folder', () => {
  const folder = useFolder()
  const put = (name: string, text: string): void => writeFileSync(join(folder(), name), text)

  it('reads a model', async () => {
    for (const name of ['config.json', 'generation_config.json']) copyFileSync(fixture(`model/${name}`), join(folder(), name))
    for (const name of ['tokenizer.json', 'chat_template.jinja', 'tokenizer_config.json', 'README.md']) put(name, '')
    const model = await readModelFolder(folder(), 'model')
    assert.equal(model.kind, 'model')
    assert.equal(model.config!.values.hidden_size, 64)
    assert.equal(model.config!.where, join(folder(), 'config.json'))
    assert.equal(model.generationConfig!.values.bos_token_id, 1)
    assert.equal(model.adapterConfig, undefined)
    assert.deepEqual(model.tokenizerFiles, ['tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja'])
  })

  it('tells model, adapter, both and neither', async () => {
    assert.equal((await readModelFolder(folder())).kind, 'neither')
    await assert.rejects(readModelFolder(folder(), 'model'), failure('FILE_NOT_FOUND', /not a model: config\.json is not there/))
    await assert.rejects(
      readModelFolder(folder(), 'adapter'),
      failure('FILE_NOT_FOUND', /not a LoRA adapter: adapter_config\.json/),
    )
    put('adapter_config.json', '{"r": 4}')
    assert.equal((await readModelFolder(folder(), 'adapter')).adapterConfig!.values.r, 4)
    await assert.rejects(
      readModelFolder(folder(), 'model'),
      failure('MODEL_INVALID', /LoRA adapter, where a whole model/, /base model/),
    )
    put('config.json', '{}')
    await assert.rejects(
      readModelFolder(folder()),
      failure('MODEL_INVALID', /has a LoRA adapter \(adapter_config\.json\) and a base model \(config\.json\)/, /two folders/),
    )
    await assert.rejects(readModelFolder(join(folder(), 'config.json')), failure('FILE_NOT_FOUND', /a file, where the folder/))
    await assert.rejects(readModelFolder(join(folder(), 'none')), failure('FILE_NOT_FOUND', /no such file/))
  })

  it('names file, line and column of broken JSON', async () => {
    put('config.json', '{\n  "a": 1,\n  "b" 2\n}')
    await assert.rejects(
      readModelFolder(folder()),
      failure('FILE_FORMAT', /config\.json: line 3, column 7: .*expected ":" after the key "b"/),
    )
    put('config.json', '[]')
    await assert.rejects(readModelFolder(folder()), failure('FILE_FORMAT', /config\.json: not a JSON object/))
    writeFileSync(join(folder(), 'config.json'), Buffer.from([0x7b, 0xff, 0x7d]))
    await assert.rejects(readModelFolder(folder()), failure('FILE_FORMAT', /config\.json: not UTF-8/))
  })

  it('takes what Python writes, and can write it again as it was', async () => {
    put('config.json', '{"a": NaN, "a": [0.0, Infinity]}')
    assert.deepEqual((await readModelFolder(folder())).config!.values.a, [0, Infinity])
    const path = fixture('model/config.json')
    assert.equal(`${pythonJson(await readJsonObject(path, { keepNumbers: true }))}\n`, readFileSync(path, 'utf8'))
  })
})
