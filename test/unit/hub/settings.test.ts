import assert from 'node:assert/strict'
import { mkdirSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { parseRepository, snapshotOrigin } from '../../../engine/hub/repository.ts'
import { hubCacheFolder, hubSettings } from '../../../engine/hub/settings.ts'
import { failure, useFolder } from '../io/support.ts'

describe('settings of the Hub', () => {
  const folder = useFolder()

  it('keeps its cache where the Python libraries keep theirs', () => {
    assert.equal(hubCacheFolder({}), join(homedir(), '.cache', 'huggingface', 'hub'))
    assert.equal(hubCacheFolder({ XDG_CACHE_HOME: '/x' }), join('/x', 'huggingface', 'hub'))
    assert.equal(hubCacheFolder({ HF_HOME: '/h', XDG_CACHE_HOME: '/x' }), join('/h', 'hub'))
    assert.equal(hubCacheFolder({ HF_HOME: '~/h' }), join(homedir(), 'h', 'hub'))
    assert.equal(hubCacheFolder({ HF_HOME: '/h', HUGGINGFACE_HUB_CACHE: '/old' }), '/old')
    assert.equal(hubCacheFolder({ HF_HOME: '/h', HUGGINGFACE_HUB_CACHE: '/old', HF_HUB_CACHE: '/new' }), '/new')
    assert.equal(hubCacheFolder({ HF_HOME: ' ', HF_HUB_CACHE: '' }), join(homedir(), '.cache', 'huggingface', 'hub'))
  })

  it('takes the token from the environment before the token file', () => {
    const home = folder()
    writeFileSync(join(home, 'token'), 'hf_fromFile\n')
    assert.equal(hubSettings({ HF_HOME: home }).token, 'hf_fromFile')
    assert.equal(hubSettings({ HF_HOME: home, HUGGING_FACE_HUB_TOKEN: ' hf_old ' }).token, 'hf_old')
    assert.equal(hubSettings({ HF_HOME: home, HUGGING_FACE_HUB_TOKEN: 'hf_old', HF_TOKEN: 'hf_new' }).token, 'hf_new')
    assert.equal(hubSettings({ HF_HOME: home, HF_HUB_DISABLE_IMPLICIT_TOKEN: '1' }).token, undefined)
    mkdirSync(join(home, 'none'))
    assert.equal(hubSettings({ HF_HOME: join(home, 'none') }).token, undefined)
  })

  it('refuses a token that no header can carry, without showing it', () => {
    assert.throws(
      () => hubSettings({ HF_TOKEN: 'hf_secret\nX: y' }),
      (error: Error) => failure('HUB', /HF_TOKEN holds no access token/)(error) && !error.message.includes('secret'),
    )
  })

  it('reads endpoint, offline mode and timeout', () => {
    assert.equal(hubSettings({ HF_HOME: '/h' }).endpoint, 'https://huggingface.co')
    assert.equal(
      hubSettings({ HF_HOME: '/h', HF_ENDPOINT: 'https://mirror.example/hub/' }).endpoint,
      'https://mirror.example/hub',
    )
    assert.throws(() => hubSettings({ HF_ENDPOINT: 'mirror' }), failure('HUB', /HF_ENDPOINT is "mirror"/))
    assert.throws(
      () => hubSettings({ HF_ENDPOINT: 'https://me:secret@mirror.example' }),
      (error: Error) => failure('HUB', /HF_ENDPOINT/)(error) && !error.message.includes('secret'),
    )
    assert.deepEqual(
      ['1', 'ON', 'yes', 'True', '0', ''].map((value) => hubSettings({ HF_HOME: '/h', HF_HUB_OFFLINE: value }).offline),
      [true, true, true, true, false, false],
    )
    assert.equal(hubSettings({ HF_HOME: '/h', HF_HUB_DOWNLOAD_TIMEOUT: '7' }).stallTimeout, 7000)
  })
})

describe('names of repositories', () => {
  it('are an organisation and a name, or an old name alone, with a revision', () => {
    assert.deepEqual(parseRepository('model', 'Qwen/Qwen2.5-0.5B'), { type: 'model', id: 'Qwen/Qwen2.5-0.5B', revision: 'main' })
    assert.equal(parseRepository('model', 'gpt2')?.id, 'gpt2')
    assert.equal(parseRepository('dataset', 'a/b@refs/pr/3')?.revision, 'refs/pr/3')
    assert.equal(parseRepository('model', 'a/b@v1', 'v2')?.revision, 'v2')
    for (const name of [
      '',
      '/a',
      'a/b/c',
      '../a',
      'a/..',
      'a/.b',
      'a b/c',
      'a/b--c',
      'a/b.git',
      '-a/b',
      'a\\b',
      './a',
      'a/b.',
      'https://x/y',
    ])
      assert.equal(parseRepository('model', name), undefined, name)
    for (const revision of ['a b', '../x', 'x..y', '/x', 'x/', 'a//b', 'x\n', '', 'a@{1}'])
      assert.throws(() => parseRepository('model', 'a/b', revision), failure('HUB', /no revision/), revision)
  })

  it('are read back from a path in the cache', () => {
    const commit = '0123456789abcdef0123456789abcdef01234567'
    assert.deepEqual(snapshotOrigin(`/c/hub/models--Qwen--Qwen2.5-0.5B/snapshots/${commit}`), {
      type: 'model',
      id: 'Qwen/Qwen2.5-0.5B',
      revision: commit,
    })
    assert.equal(snapshotOrigin(`C:\\hub\\models--gpt2\\snapshots\\${commit}`)?.id, 'gpt2')
    assert.equal(snapshotOrigin('/home/me/models/llama'), undefined)
  })
})
