import assert from 'node:assert/strict'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { fetchModel } from '../../../engine/hub/modelFiles.ts'
import type { HubOptions } from '../../../engine/hub/snapshot.ts'
import type { HubProgress } from '../../../engine/hub/transferProgress.ts'
import { failure } from '../io/support.ts'
import { gitHash, goodToken, sha256 } from './hubServer.ts'
import { config, modelFiles, noise, useHub } from './support.ts'

const weights = noise(300_000)

describe('models by name on the Hub', () => {
  const hub = useHub()
  const fetch = (name = 'tiny/llama', options: HubOptions & { revision?: string } = {}) =>
    fetchModel(name, options.revision, { ...options, settings: options.settings ?? hub.settings() })
  const repository = () => join(hub.cache, 'models--tiny--llama')
  const blob = () => join(repository(), 'blobs', sha256(weights))
  const weightRequests = () =>
    hub.server.take().filter(({ host, url }) => host === 'storage' && url.includes('model.safetensors'))
  const assertWhole = (folder: string) => assert.ok(readFileSync(join(folder, 'model.safetensors')).equals(weights))

  it('are kept as the Python libraries keep them, and only what is needed', async () => {
    const commit = hub.server.push('tiny/llama', modelFiles(weights))
    const { folder } = await fetch()
    assert.equal(folder, join(repository(), 'snapshots', commit))
    assert.deepEqual(readdirSync(folder).sort(), [
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ])
    assert.equal(readFileSync(join(repository(), 'refs', 'main'), 'utf8'), commit)
    assert.equal(readlinkSync(join(folder, 'model.safetensors')), join('..', '..', 'blobs', sha256(weights)))
    assert.equal(readlinkSync(join(folder, 'config.json')), join('..', '..', 'blobs', gitHash(Buffer.from(config))))
    assert.deepEqual(
      readdirSync(join(repository(), 'blobs')).filter((name) => name.includes('.')),
      [],
    )
    assertWhole(folder)
  })

  it('are fetched once: a second time only the commit is asked', async () => {
    hub.server.push('tiny/llama', modelFiles(weights))
    await fetch()
    hub.server.take()
    await fetch()
    assert.deepEqual(
      hub.server.take().map(({ url }) => url.replace(/\?.*/, '')),
      ['/api/models/tiny/llama/revision/main'],
    )
  })

  it('at a commit that is there nothing is asked at all', async () => {
    const commit = hub.server.push('tiny/llama', modelFiles(weights))
    await fetch('tiny/llama', { revision: commit })
    assert.ok(!existsSync(join(repository(), 'refs')))
    hub.server.take()
    await fetch(`tiny/llama@${commit}`)
    assert.deepEqual(hub.server.take(), [])
  })

  it('share blobs between commits, branches and tags', async () => {
    const first = hub.server.push('tiny/llama', modelFiles(weights))
    await fetch()
    const second = hub.server.push('tiny/llama', { ...modelFiles(weights), 'config.json': `${config} ` }, { branch: 'refs/pr/1' })
    hub.server.take()
    const { folder, commit } = await fetch('tiny/llama', { revision: 'refs/pr/1' })
    assert.equal(commit, second)
    assert.notEqual(first, second)
    assert.deepEqual(weightRequests(), [])
    assertWhole(folder)
    assert.equal(readFileSync(join(repository(), 'refs', 'refs', 'pr', '1'), 'utf8'), second)
  })

  it('follow main when it moves', async () => {
    hub.server.push('tiny/llama', modelFiles(weights))
    await fetch()
    const second = hub.server.push('tiny/llama', { ...modelFiles(weights), 'config.json': `${config} ` })
    assert.equal((await fetch()).commit, second)
    assert.equal(readFileSync(join(repository(), 'refs', 'main'), 'utf8'), second)
  })

  it('in shards: those of the index, no consolidated duplicate', async () => {
    const shards = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    const index = JSON.stringify({ metadata: {}, weight_map: { a: shards[0], b: shards[1], c: shards[0] } })
    hub.server.push('tiny/llama', {
      'config.json': config,
      'model.safetensors.index.json': index,
      [shards[0]!]: noise(5000, 2),
      [shards[1]!]: noise(6000, 3),
      'consolidated.safetensors': noise(9000, 4),
    })
    const { folder } = await fetch()
    assert.deepEqual(readdirSync(folder).sort(), ['config.json', ...shards, 'model.safetensors.index.json'])
    assert.ok(readFileSync(join(folder, shards[1]!)).equals(noise(6000, 3)))
    hub.server.push('tiny/llama', {
      'config.json': config,
      'model.safetensors.index.json': JSON.stringify({ weight_map: { a: '../../x' } }),
    })
    await assert.rejects(fetch(), failure('HUB', /names "\.\.\/\.\.\/x", which the repository does not have/))
  })

  it('that are adapters come with their two files', async () => {
    hub.server.push('tiny/llama', {
      'adapter_config.json': '{}',
      'adapter_model.safetensors': noise(2000),
      'optimizer.pt': noise(9000),
      'checkpoint-5/adapter_model.safetensors': noise(2000),
    })
    assert.deepEqual(readdirSync((await fetch()).folder).sort(), ['adapter_config.json', 'adapter_model.safetensors'])
  })

  it('under an old name are found by the redirect', async () => {
    hub.server.push('tiny/llama', modelFiles(weights))
    hub.server.rename('old/llama', 'tiny/llama')
    assertWhole((await fetch('old/llama')).folder)
  })

  it('without safetensors are refused before anything large is fetched', async () => {
    const refused: [Record<string, string | Buffer>, RegExp, RegExp][] = [
      [{ 'config.json': config, 'pytorch_model.bin': weights }, /only PyTorch checkpoints/, /refs\/pr\/1/],
      [{ 'config.json': config, 'model.Q4.gguf': weights }, /only GGUF/, /original model/],
      [{ 'model.Q4.gguf': weights }, /neither config\.json/, /GGUF/],
      [{ 'config.json': config, 'tf_model.h5': weights }, /other frameworks/, /safetensors/],
      [{ 'config.json': config }, /no weights/, /safetensors/],
      [{ 'README.md': 'x' }, /is no model/, /name/],
    ]
    for (const [at, [files, message, hint]] of refused.entries()) {
      hub.server.push(`tiny/refused${at}`, files)
      await assert.rejects(fetch(`tiny/refused${at}`), failure('HUB', message, hint))
    }
    hub.server.push('tiny/both', { ...modelFiles(weights), 'adapter_config.json': '{}' })
    await assert.rejects(fetch('tiny/both'), failure('MODEL_INVALID', /adapter.*and a base model/))
    assert.deepEqual(
      hub.server.take().filter(({ host }) => host === 'storage'),
      [],
    )
  })

  it('that do not exist, or not in that revision, are told', async () => {
    await assert.rejects(
      fetch('tiny/nowhere'),
      failure('HUB', /There is no model tiny\/nowhere at http:\/\/127.*private/, /HF_TOKEN/),
    )
    await assert.rejects(
      fetch('tiny/nowhere', { settings: hub.settings({ token: goodToken }) }),
      failure('HUB', /There is no model/, /account/),
    )
    hub.server.push('tiny/llama', modelFiles(weights))
    await assert.rejects(
      fetch('tiny/llama', { revision: 'v9' }),
      failure('HUB', /tiny\/llama has no revision "v9"/, /tree\/main/),
    )
    await assert.rejects(
      fetch('tiny/llama', { settings: hub.settings({ token: 'hf_revoked' }) }),
      failure('HUB', /does not accept the access token/),
    )
    await assert.rejects(fetch('a/b/c'), failure('HUB', /no name of a repository/))
  })

  it('that are gated say where to accept the licence', async () => {
    hub.server.push('tiny/llama', modelFiles(weights), { gated: true })
    await assert.rejects(
      fetch(),
      failure('HUB', /tiny\/llama is gated/, /Accept its licence at http:\/\/127.*\/tiny\/llama .*HF_TOKEN/),
    )
    assertWhole((await fetch('tiny/llama', { settings: hub.settings({ token: goodToken }) })).folder)
  })

  it('that are private come with a token, which goes to the Hub and to no other host', async () => {
    hub.server.push('tiny/llama', modelFiles(weights), { hidden: true })
    await fetch('tiny/llama', { settings: hub.settings({ token: goodToken }) })
    const asked = hub.server.take()
    assert.ok(asked.some(({ host }) => host === 'storage'))
    for (const { host, authorization } of asked) assert.equal(authorization, host === 'hub' ? `Bearer ${goodToken}` : undefined)
  })

  describe('when the connection fails', () => {
    it('go on where a reset cut the file, as often as it takes', async () => {
      hub.server.push('tiny/llama', modelFiles(weights))
      hub.server.faults.push({ host: 'storage', path: 'model.safetensors', resetAfter: 30_000, times: 7 })
      const { folder } = await fetch()
      assertWhole(folder)
      const ranges = weightRequests().map(({ range }) => Number(/\d+/.exec(range ?? '0')![0]))
      assert.equal(ranges.length, 8)
      assert.ok(
        ranges.every((from, at) => at === 0 || from > ranges[at - 1]!),
        ranges.join(),
      )
    })

    it('go on after 503 and 429, and wait as long as the Hub asks', async () => {
      hub.server.push('tiny/llama', modelFiles(weights))
      hub.server.faults.push(
        { path: '/revision/', status: 503 },
        { path: '/tree/', status: 429, headers: { 'retry-after': '1' } },
        { host: 'storage', path: 'model.safetensors', status: 500 },
        { path: '/resolve/', status: 502 },
      )
      const waits: string[] = []
      const began = performance.now()
      const { folder } = await fetch('tiny/llama', { onProgress: ({ waiting }) => waiting !== undefined && waits.push(waiting) })
      assertWhole(folder)
      assert.ok(performance.now() - began >= 1000)
      assert.match(waits.join('\n'), /answered 503; trying again/)
    })

    it('do not wait for longer than is sensible', async () => {
      hub.server.push('tiny/llama', modelFiles(weights))
      hub.server.faults.push({ path: '/revision/', status: 429, headers: { 'retry-after': '3600' } })
      await assert.rejects(fetch(), failure('HUB', /left alone for/, /in 1 h/))
    })

    it('end with an error that keeps what came when there is no end to it', async () => {
      hub.server.push('tiny/llama', modelFiles(weights))
      hub.server.faults.push(
        { host: 'storage', path: 'model.safetensors', resetAfter: 50_000 },
        { host: 'storage', path: 'model.safetensors', status: 503, times: 20 },
      )
      await assert.rejects(fetch(), failure('HUB', /storage of the Hub answered 503/, /kept/))
      const partial = statSync(`${blob()}.unsloth.incomplete`).size
      assert.ok(partial > 0 && partial < weights.length)
      hub.server.faults.length = 0
      hub.server.take()
      assertWhole((await fetch()).folder)
      assert.equal(weightRequests()[0]!.range, `bytes=${partial}-`)
    })

    it('notice an end that comes too early', async () => {
      hub.server.push('tiny/llama', modelFiles(weights))
      hub.server.faults.push({ host: 'storage', path: 'model.safetensors', endAfter: 100_000 })
      assertWhole((await fetch()).folder)
      assert.deepEqual(
        weightRequests().map(({ range }) => range),
        [undefined, 'bytes=100000-'],
      )
    })

    it('give up a connection on which nothing comes', async () => {
      hub.server.push('tiny/llama', modelFiles(weights))
      hub.server.faults.push({ host: 'storage', path: 'model.safetensors', stallAfter: 100_000 })
      assertWhole((await fetch('tiny/llama', { settings: hub.settings({ stallTimeout: 150 }) })).folder)
      assert.equal(weightRequests().length, 2)
    })

    it('begin anew where a server knows no ranges or refuses one', async () => {
      hub.server.push('tiny/llama', modelFiles(weights))
      hub.server.faults.push(
        { host: 'storage', path: 'model.safetensors', resetAfter: 60_000 },
        { host: 'storage', path: 'model.safetensors', ignoreRange: true },
      )
      assertWhole((await fetch()).folder)
      assert.equal(weightRequests().length, 2)
      rmSync(repository(), { recursive: true })
      hub.server.faults.push(
        { host: 'storage', path: 'model.safetensors', resetAfter: 60_000 },
        { host: 'storage', path: 'model.safetensors', status: 416 },
      )
      assertWhole((await fetch()).folder)
      assert.equal(weightRequests().at(-1)!.range, undefined)
    })

    it('refuse redirects in circles', async () => {
      hub.server.push('tiny/llama', modelFiles(weights))
      hub.server.faults.push({ host: 'hub', path: 'model.safetensors', redirect: 'model.safetensors', times: 1000 })
      await assert.rejects(fetch(), failure('HUB', /in circles/))
    })

    it('are taken from the cache when the Hub cannot be reached, with a notice', async () => {
      hub.server.push('tiny/llama', modelFiles(weights))
      await fetch()
      const settings = hub.settings()
      hub.server.stop()
      const notices: string[] = []
      assertWhole((await fetch('tiny/llama', { settings, onNotice: (notice) => notices.push(notice) })).folder)
      assert.match(notices.join(), /cannot be reached.*used as it was fetched before/)
      await assert.rejects(fetch('tiny/other', { settings }), failure('HUB', /cannot be reached \(ECONNREFUSED\)/, /HF_ENDPOINT/))
    })

    it('say when something that is no Hub answers', async () => {
      hub.server.faults.push({ path: '/revision/', status: 200 })
      await assert.rejects(fetch(), failure('HUB', /not what a Hub sends/, /HF_ENDPOINT/))
    })
  })

  describe('when content is damaged', () => {
    it('fetch it once more when its checksum is wrong', async () => {
      hub.server.push('tiny/llama', modelFiles(weights))
      hub.server.faults.push(
        { host: 'storage', path: 'model.safetensors', corrupt: true },
        { path: 'config.json', corrupt: true },
      )
      const { folder } = await fetch()
      assertWhole(folder)
      assert.equal(readFileSync(join(folder, 'config.json'), 'utf8'), config)
      assert.deepEqual(
        weightRequests().map(({ range }) => range),
        [undefined, undefined],
      )
    })

    it('keep nothing of it when it is wrong again', async () => {
      hub.server.push('tiny/llama', modelFiles(weights))
      hub.server.faults.push({ host: 'storage', path: 'model.safetensors', corrupt: true, times: 2 })
      await assert.rejects(fetch(), failure('HUB', /model\.safetensors arrived damaged, twice/, /HF_ENDPOINT/))
      assert.deepEqual(
        readdirSync(join(repository(), 'blobs')).filter((name) => name.startsWith(sha256(weights))),
        [],
      )
      assertWhole((await fetch()).folder)
    })

    it('replace a partial file that does not belong there, and a blob of the wrong size', async () => {
      hub.server.push('tiny/llama', modelFiles(weights))
      const { folder } = await fetch()
      truncateSync(blob(), 1000)
      writeFileSync(`${blob()}.unsloth.incomplete`, noise(5000, 99))
      assertWhole((await fetch()).folder)
      truncateSync(blob(), 10)
      writeFileSync(`${blob()}.unsloth.incomplete`, noise(weights.length + 5, 99))
      await fetch()
      assertWhole(folder)
    })

    it('go on with what a Python library left long ago, and leave alone what one is writing', async () => {
      hub.server.push('tiny/llama', modelFiles(weights))
      mkdirSync(join(repository(), 'blobs'), { recursive: true })
      writeFileSync(`${blob()}.incomplete`, weights.subarray(0, 70_000))
      utimesSync(`${blob()}.incomplete`, new Date(0), new Date(0))
      assertWhole((await fetch()).folder)
      assert.equal(weightRequests()[0]!.range, 'bytes=70000-')
      assert.ok(!existsSync(`${blob()}.incomplete`))
      rmSync(blob())
      writeFileSync(`${blob()}.incomplete`, weights.subarray(0, 70_000))
      assertWhole((await fetch()).folder)
      assert.equal(weightRequests()[0]!.range, undefined)
      assert.equal(statSync(`${blob()}.incomplete`).size, 70_000)
    })
  })

  describe('offline', () => {
    it('are read from the cache, whole or not at all', async () => {
      await assert.rejects(
        fetch('tiny/llama', { settings: hub.settings({ offline: true }) }),
        failure('HUB', /tiny\/llama is not in the Hub cache .*HF_HUB_OFFLINE is set/, /Unset/),
      )
      const commit = hub.server.push('tiny/llama', modelFiles(weights))
      await fetch()
      hub.server.take()
      const offline = hub.settings({ offline: true })
      for (const revision of [undefined, commit, commit.slice(0, 8)])
        assertWhole((await fetch('tiny/llama', { settings: offline, ...(revision === undefined ? {} : { revision }) })).folder)
      await assert.rejects(
        fetch('tiny/llama', { settings: offline, revision: 'v2' }),
        failure('HUB', /tiny\/llama at v2 is not in the Hub cache/),
      )
      rmSync(blob())
      await assert.rejects(
        fetch('tiny/llama', { settings: offline }),
        failure('HUB', /only in part: "model\.safetensors" was never fetched/),
      )
      assert.deepEqual(hub.server.take(), [])
    })

    it('are read as a Python library has left them', async () => {
      const commit = '0123456789abcdef0123456789abcdef01234567'
      const folder = join(repository(), 'snapshots', commit)
      for (const part of [folder, join(repository(), 'blobs'), join(repository(), 'refs')]) mkdirSync(part, { recursive: true })
      writeFileSync(join(repository(), 'refs', 'main'), commit)
      for (const [name, content] of [
        ['config.json', config],
        ['model.safetensors', weights],
      ] as const) {
        writeFileSync(join(repository(), 'blobs', name), content)
        symlinkSync(join('..', '..', 'blobs', name), join(folder, name))
      }
      const offline = hub.settings({ offline: true })
      assertWhole((await fetch('tiny/llama', { settings: offline })).folder)
      rmSync(join(folder, 'model.safetensors'))
      await assert.rejects(fetch('tiny/llama', { settings: offline }), failure('HUB', /only in part/))
    })
  })

  it('report bytes, rate and what is left', async () => {
    hub.server.push('tiny/llama', modelFiles(weights))
    const seen: HubProgress[] = []
    await fetch('tiny/llama', { onProgress: (progress) => seen.push(progress) })
    const last = seen.at(-1)!
    assert.equal(last.bytes, last.totalBytes)
    assert.equal(last.files, last.filesDone)
    assert.ok(last.totalBytes > weights.length && last.totalBytes < weights.length + 1000)
    assert.ok(last.bytesPerSecond > 0)
  })

  it('stop when the user does, and go on later', async () => {
    hub.server.push('tiny/llama', modelFiles(weights))
    hub.server.faults.push({ host: 'storage', path: 'model.safetensors', stallAfter: 40_000 })
    const stop = new AbortController()
    const fetching = fetch('tiny/llama', {
      settings: hub.settings({ stallTimeout: 200 }),
      signal: stop.signal,
      onProgress: ({ bytes }) => bytes >= 40_000 && stop.abort(),
    })
    await assert.rejects(fetching, failure('STOPPED', /Stopped/))
    hub.server.take()
    assertWhole((await fetch()).folder)
    assert.match(weightRequests()[0]!.range!, /^bytes=[1-9]/)
  })

  it('are not begun when the disk cannot hold them', async () => {
    const files = { 'config.json': config, 'model.safetensors': weights }
    hub.server.push('tiny/llama', files)
    hub.server.pageSize = 100
    const { answerTree } = hub.server as unknown as { answerTree: (...args: unknown[]) => void }
    Object.assign(hub.server, {
      answerTree: (response: { end: (text: string) => void }, ...rest: unknown[]) => {
        const end = response.end.bind(response)
        response.end = (text) => end(text.replaceAll(`"size":${weights.length}`, '"size":9000000000000000'))
        answerTree.call(hub.server, response, ...rest)
      },
    })
    await assert.rejects(fetch(), failure('FILE_WRITE', /tiny\/llama needs .* PB on the disk/, /HF_HUB_CACHE/))
    assert.deepEqual(weightRequests(), [])
  })

  it('never leave their folder, whatever a listing says', async () => {
    hub.server.push('tiny/llama', { ...modelFiles(weights), '../../evil.json': 'x' })
    await assert.rejects(fetch(), failure('HUB', /lists "\.\.\/\.\.\/evil\.json"/))
    assert.ok(!existsSync(join(hub.cache, 'evil.json')))
  })
})
