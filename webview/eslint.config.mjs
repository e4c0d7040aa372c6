import root from '../eslint.config.mjs'

/** Pages know the DOM and src/shared: neither the editor, nor Node, nor the engine. */
export default [
  ...root,
  {
    files: ['**/*.ts'],
    languageOptions: { parserOptions: { project: './tsconfig.json', tsconfigRootDir: import.meta.dirname } },
    rules: {
      'no-restricted-imports': [
        'error',
        {
          paths: [{ name: 'vscode', message: 'A page talks to the host through messages: webview/vscodeApi.ts.' }],
          patterns: [
            {
              group: ['node:*', '**/engine/**', '**/src/**', '!#shared/*'],
              message: 'A page imports the DOM libraries and #shared only.',
            },
          ],
        },
      ],
    },
  },
]
