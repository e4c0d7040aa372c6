import assert from 'node:assert/strict'
import { redact } from '../../../engine/run/redact.ts'

describe('redact', () => {
  const secret = 'hf_AbCdEfGhIjKlMnOpQrStUvWxYz'

  it('removes tokens by their shape, anywhere', () => {
    for (const text of [secret, `x${'\n'}push ${secret}!`, `"${secret}"`, `https://user:${secret}@host/`]) {
      const clean = redact(text)
      assert.doesNotMatch(clean, /AbCdEf/)
      assert.equal(clean.length, text.length - secret.length + '<redacted>'.length)
    }
    assert.equal(redact('Authorization: Bearer abc.def'), 'Authorization: Bearer <redacted>')
  })

  it('removes values of keys that hold tokens', () => {
    const cases: [string, string][] = [
      ['hub:\n  hub_token: plain123 # mine\n  private: true', 'hub:\n  hub_token: <redacted> # mine\n  private: true'],
      ['{"hf_token": "a b c", "x": 1}', '{"hf_token": "<redacted>", "x": 1}'],
      ["wandb_token: 'k1'", "wandb_token: '<redacted>'"],
      ['unsloth finetune --hub_token plain123 --lr 1', 'unsloth finetune --hub_token <redacted> --lr 1'],
      ['WANDB_API_KEY=0123abc next', 'WANDB_API_KEY=<redacted> next'],
    ]
    for (const [text, clean] of cases) assert.equal(redact(text), clean)
  })

  it('leaves everything else as it is', () => {
    const text = [
      'hub_token: null',
      'hf_token:',
      '  next: 1',
      'eos_token: </s>',
      'pad_token: <pad>',
      'tokens: 512',
      'max_tokens = 7',
      'hf_model: x',
      'bearer of news',
      'num_tokens: 3',
    ].join('\n')
    assert.equal(redact(text), text)
  })
})
