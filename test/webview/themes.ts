/** Colours as the editor's own themes set them: Dark Modern, Light Modern, Dark High Contrast. The page knows only the names. */
export interface TestTheme {
  readonly bodyClass: string
  readonly variables: Readonly<Record<string, string>>
}

const fonts = {
  'font-family': '"DejaVu Sans", "Liberation Sans", sans-serif', 'font-size': '13px', 'font-weight': 'normal',
  'editor-font-family': 'monospace', 'editor-font-size': '14px',
}

export const themes: Readonly<Record<'dark' | 'light' | 'highContrast', TestTheme>> = {
  dark: {
    bodyClass: 'vscode-dark',
    variables: {
      ...fonts, foreground: '#cccccc', descriptionForeground: '#9d9d9d', errorForeground: '#f85149', focusBorder: '#0078d4',
      'icon-foreground': '#cccccc',
      'editor-background': '#1f1f1f', 'editor-foreground': '#cccccc', 'panel-border': '#2b2b2b', 'widget-border': '#313131',
      'editor-selectionBackground': '#264f78', 'editorHoverWidget-background': '#202020',
      'editorHoverWidget-foreground': '#cccccc', 'editorHoverWidget-border': '#454545',
      'editorWarning-foreground': '#cca700', 'editorInfo-foreground': '#3794ff', 'testing-iconPassed': '#73c991',
      'progressBar-background': '#0078d4',
      'charts-foreground': '#cccccc', 'charts-lines': '#cccccc80', 'charts-red': '#f14c4c', 'charts-blue': '#3794ff',
      'charts-yellow': '#cca700',
      'charts-orange': '#d18616', 'charts-green': '#89d185', 'charts-purple': '#b180d7',
      'button-background': '#0078d4', 'button-foreground': '#ffffff', 'button-hoverBackground': '#026ec1',
      'button-secondaryBackground': '#313131',
      'button-secondaryForeground': '#cccccc', 'button-secondaryHoverBackground': '#3c3c3c', 'button-border': '#ffffff12',
      'checkbox-background': '#313131', 'checkbox-border': '#3c3c3c', 'checkbox-foreground': '#cccccc',
      'dropdown-background': '#313131', 'dropdown-border': '#3c3c3c',
      'dropdown-foreground': '#cccccc', 'dropdown-listBackground': '#1f1f1f', 'settings-dropdownListBorder': '#454545',
      'list-activeSelectionBackground': '#04395e',
      'list-activeSelectionForeground': '#ffffff', 'list-hoverBackground': '#2a2d2e',
      'toolbar-hoverBackground': '#5a5d5e50', 'textLink-foreground': '#4daafc',
      'input-background': '#313131', 'input-foreground': '#cccccc', 'scrollbarSlider-background': '#79797966',
    },
  },
  light: {
    bodyClass: 'vscode-light',
    variables: {
      ...fonts, foreground: '#3b3b3b', descriptionForeground: '#616161', errorForeground: '#f85149', focusBorder: '#005fb8',
      'icon-foreground': '#3b3b3b',
      'editor-background': '#ffffff', 'editor-foreground': '#3b3b3b', 'panel-border': '#e5e5e5', 'widget-border': '#e5e5e5',
      'editor-selectionBackground': '#add6ff', 'editorHoverWidget-background': '#f8f8f8',
      'editorHoverWidget-foreground': '#3b3b3b', 'editorHoverWidget-border': '#c8c8c8',
      'editorWarning-foreground': '#bf8803', 'editorInfo-foreground': '#1a85ff', 'testing-iconPassed': '#73c991',
      'progressBar-background': '#005fb8',
      'charts-foreground': '#3b3b3b', 'charts-lines': '#3b3b3b80', 'charts-red': '#e51400', 'charts-blue': '#1a85ff',
      'charts-yellow': '#bf8803',
      'charts-orange': '#d18616', 'charts-green': '#388a34', 'charts-purple': '#652d90',
      'button-background': '#005fb8', 'button-foreground': '#ffffff', 'button-hoverBackground': '#0258a8',
      'button-secondaryBackground': '#e5e5e5',
      'button-secondaryForeground': '#3b3b3b', 'button-secondaryHoverBackground': '#cccccc', 'button-border': '#0000001a',
      'checkbox-background': '#f8f8f8', 'checkbox-border': '#cecece', 'checkbox-foreground': '#3b3b3b',
      'dropdown-background': '#ffffff', 'dropdown-border': '#cecece',
      'dropdown-foreground': '#3b3b3b', 'dropdown-listBackground': '#ffffff', 'settings-dropdownListBorder': '#c8c8c8',
      'list-activeSelectionBackground': '#e8e8e8',
      'list-activeSelectionForeground': '#000000', 'list-hoverBackground': '#f2f2f2',
      'toolbar-hoverBackground': '#b8b8b850', 'textLink-foreground': '#005fb8',
      'input-background': '#ffffff', 'input-foreground': '#3b3b3b', 'scrollbarSlider-background': '#64646466',
    },
  },
  highContrast: {
    bodyClass: 'vscode-high-contrast',
    variables: {
      ...fonts, foreground: '#ffffff', descriptionForeground: '#ffffffb3', errorForeground: '#f48771',
      focusBorder: '#f38518', 'icon-foreground': '#ffffff',
      contrastBorder: '#6fc3df', contrastActiveBorder: '#f38518', 'editor-background': '#000000',
      'editor-foreground': '#ffffff', 'panel-border': '#6fc3df',
      'widget-border': '#6fc3df', 'editorHoverWidget-background': '#0c141f', 'editorHoverWidget-foreground': '#ffffff',
      'editorHoverWidget-border': '#6fc3df',
      'editorWarning-foreground': '#ffd370', 'editorInfo-foreground': '#3794ff', 'testing-iconPassed': '#73c991',
      'progressBar-background': '#6fc3df',
      'charts-foreground': '#ffffff', 'charts-lines': '#ffffff80', 'charts-red': '#f48771', 'charts-blue': '#3794ff',
      'charts-yellow': '#ffd370',
      'charts-orange': '#d18616', 'charts-green': '#89d185', 'charts-purple': '#b180d7', 'button-foreground': '#ffffff',
      'button-border': '#6fc3df',
      'button-secondaryForeground': '#ffffff', 'checkbox-background': '#000000', 'checkbox-border': '#6fc3df',
      'checkbox-foreground': '#ffffff',
      'dropdown-background': '#000000', 'dropdown-border': '#6fc3df', 'dropdown-foreground': '#ffffff',
      'dropdown-listBackground': '#000000',
      'settings-dropdownListBorder': '#6fc3df', 'textLink-foreground': '#21a6ff', 'input-background': '#000000',
      'input-foreground': '#ffffff',
      'list-activeSelectionForeground': '#ffffff', 'scrollbarSlider-background': '#6fc3df99',
    },
  },
}

/** The variables as a style sheet. */
export const themeCss = ({ variables }: TestTheme): string =>
  `html { ${Object.entries(variables).map(([name, value]) => `--vscode-${name}: ${value};`).join(' ')} }`
