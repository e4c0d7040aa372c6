export interface PanelHtmlOptions {
  /** `webview.cspSource`. */
  readonly cspSource: string
  /** Random, new for every page. */
  readonly nonce: string
  /**
   * Another one, for an empty style with which the controls' library asks the browser about `:focus-visible`. It reads it
   * from the page.
   */
  readonly styleNonce: string
  readonly scriptUri: string
  readonly styleUri: string
  readonly title: string
  /** Of the texts, as `en` or `de`. */
  readonly language: string
}

/** The panel's page: no inline script or style, nothing from outside the extension. */
export function panelHtml({ cspSource, nonce, styleNonce, scriptUri, styleUri, title, language }: PanelHtmlOptions): string {
  const policy = [
    "default-src 'none'",
    `script-src 'nonce-${nonce}'`,
    `style-src ${cspSource} 'nonce-${styleNonce}'`,
    `font-src ${cspSource}`,
    "base-uri 'none'",
    "form-action 'none'",
  ].join('; ')
  return `<!DOCTYPE html>
<html lang="${escape(language)}">
<head>
  <meta charset="utf-8">
  <meta http-equiv="Content-Security-Policy" content="${escape(policy)}">
  <meta property="csp-nonce" content="${escape(styleNonce)}">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <link rel="stylesheet" href="${escape(styleUri)}">
  <title>${escape(title)}</title>
</head>
<body>
  <div id="root"></div>
  <script nonce="${escape(nonce)}" src="${escape(scriptUri)}"></script>
</body>
</html>
`
}

const entities: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' }
const escape = (text: string): string => text.replace(/[&<>"']/g, (character) => entities[character]!)
