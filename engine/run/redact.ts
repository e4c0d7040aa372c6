/** Access tokens by their shape: Hugging Face, OpenAI-style, GitHub. */
const shaped = /\b(?:hf_[A-Za-z0-9]{8,}|api_org_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,})/g
const bearer = /(\bBearer[ \t]+)[^\s"'<]+/g

const name = '(?:hub|hf|huggingface|wandb|access|auth)[_-](?:hub[_-])?token|(?:wandb[_-])?api[_-]key'
const value = `"[^"\\n]*"|'[^'\\n]*'|[^\\s,}"'#&]+`
/** `hub_token: value`, `"wandb_token": "value"`, `hf_token=value`. */
const assigned = new RegExp(`(\\b(?:${name})["']?[ \\t]*[:=][ \\t]*)(?!(?:null|~|true|false)\\b)(${value})`, 'gi')
/** `--hub_token value`. */
const flagged = new RegExp(`(--(?:${name})[ \\t]+)(?!-)(${value})`, 'gi')

/** What stands in the place of a secret. */
export const redacted = '<redacted>'

/** The text without access tokens: applied to all that a run writes. The rest is left as it is, byte for byte. */
export function redact(text: string): string {
  const replace = (_match: string, before: string, secret: string): string => {
    const quote = secret.startsWith('"') || secret.startsWith("'") ? secret[0]! : ''
    return `${before}${quote}${redacted}${quote}`
  }
  return text.replace(shaped, redacted).replace(bearer, `$1${redacted}`).replace(assigned, replace).replace(flagged, replace)
}
