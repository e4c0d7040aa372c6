import tseslint from 'typescript-eslint'

/** The architecture, as import rules: who may know what. */
const noEditor = { name: 'vscode', message: 'Only src/ outside src/shared may know the editor.' }
const onlyShared = { group: ['**/webview/**', '**/src/*', '!**/src/shared/**'], message: 'The engine knows only src/shared.' }
const nodeGlobals = ['process', 'console', 'performance', 'setTimeout', 'clearTimeout', 'URL', 'require', 'module']
const noCompute = {
  group: [
    '**/engine/native*',
    '**/engine/fastLanguageModel*',
    '**/engine/runtime/runtime*',
    '**/engine/runtime/loadedModel*',
    '**/engine/runtime/stepRunner*',
  ],
  message: 'Only the engine process loads the addon.',
}
const forbid = (paths, patterns) => ({ 'no-restricted-imports': ['error', { paths, patterns }] })

export default tseslint.config(
  { ignores: ['dist/**', 'build/**', 'node_modules/**'] },
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.recommendedTypeChecked, tseslint.configs.stylisticTypeChecked],
    languageOptions: { parserOptions: { project: './tsconfig.json' } },
    rules: {
      '@typescript-eslint/no-floating-promises': 'error',
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': ['error', { considerDefaultExhaustiveForUnions: true }],
      '@typescript-eslint/no-non-null-assertion': 'off',
      '@typescript-eslint/restrict-template-expressions': 'off',
      '@typescript-eslint/prefer-nullish-coalescing': 'off',
      'no-restricted-syntax': [
        'error',
        {
          selector: "ImportDeclaration[source.value='zod'] > ImportSpecifier",
          message: "Use `import * as z from 'zod'`: the named import bundles every locale.",
        },
      ],
    },
  },
  { files: ['engine/**/*.ts'], rules: forbid([noEditor], [onlyShared]) },
  {
    files: ['engine/graph/**/*.ts', 'engine/model/**/*.ts'],
    rules: forbid(
      [noEditor],
      [
        onlyShared,
        {
          group: ['**/native*', '**/runtime/**', '**/train/**', '**/cli/**', '**/run/**', '**/io/**', 'node:*'],
          message: 'Graphs, plans and model descriptions are pure: no addon, no files, no trainer.',
        },
      ],
    ),
  },
  {
    // The editor's process reads runs, recipes and model folders with the engine's own code, but never computes.
    files: ['src/**/*.ts'],
    rules: forbid([], [noCompute]),
  },
  { files: ['src/language/**/*.ts'], rules: forbid([noEditor], [noCompute]) },
  {
    files: ['src/shared/**/*.ts'],
    rules: forbid(
      [noEditor],
      [
        {
          group: ['**/engine/**', '**/webview/**', '../*', 'node:*'],
          message: 'src/shared is pure: it imports nothing of the project and nothing of Node.',
        },
      ],
    ),
  },
  {
    files: ['**/*.mjs', '**/*.cjs'],
    languageOptions: { globals: Object.fromEntries(nodeGlobals.map((name) => [name, 'readonly'])) },
    rules: { 'no-undef': 'error', 'no-unused-vars': 'error', 'prefer-const': 'error' },
  },
  {
    files: ['build.mjs', 'tools/**'],
    rules: forbid(
      [],
      [
        {
          regex: '^[^.](?!ode:)',
          message: 'The build runs before any package is installed: import packages with await import() where they are used.',
        },
      ],
    ),
  },
  {
    files: ['test/**/*.ts'],
    rules: { '@typescript-eslint/no-unused-expressions': 'off', '@typescript-eslint/no-floating-promises': 'off' },
  },
)
