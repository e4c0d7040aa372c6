/**
 * Every text of the training panel in English. The host translates them (the English text is the key of its bundle) and
 * hands them to the page; {0}, {1} stand for values.
 */
export const panelStrings = {
  // states
  queued: 'Queued', preparing: 'Preparing', loading: 'Loading', training: 'Training', evaluating: 'Evaluating', saving: 'Saving',
  paused: 'Paused', finished: 'Finished', failed: 'Failed', stopped: 'Stopped', interrupted: 'Interrupted', missing: 'Not found',
  interruptedHint: 'The process of this run is gone. Everything up to the last logged step is here.',
  interruptedResume: 'It can go on from the checkpoint of step {0}.',
  interruptedNoCheckpoint: 'There is no checkpoint to go on from.',
  missingHint: 'The folder {0} is gone or holds no run.',
  reading: 'Reading metrics, {0} steps so far',
  waitingForSteps: 'Waiting for the first step',
  // header
  loss: 'Loss', evalLoss: 'Eval loss', best: 'best {0}', step: 'Step', epoch: 'Epoch', eta: 'Time left', elapsed: 'Elapsed',
  took: 'Took',
  speed: 'Speed', tokensPerSecond: '{0} tok/s', memory: 'Memory', ofPlanned: '{0} of {1} planned', device: 'Device',
  stepOf: '{0} / {1}',
  notFinite: 'not finite', attempt: 'attempt {0}', progress: 'Progress',
  moreWarnings: 'and {0} more',
  nonFiniteWarning: 'The loss was not a finite number in {0} steps, the last time in step {1}.',
  nonFiniteOne: 'The loss was not a finite number in step {0}.',
  invalidLines: '{0} lines of metrics.jsonl could not be understood and were left out.',
  // actions
  stopAndSave: 'Save and stop', stopNow: 'Stop now', pause: 'Pause', resume: 'Resume', resumeFrom: 'Resume from step {0}',
  openRecipe: 'Open the recipe of this run', openLog: 'Open the log', reveal: 'Reveal the run folder',
  generate: 'Generate with the result',
  merge: 'Merge the adapter into the model', compareRecipes: 'Compare the recipes', runActions: 'Run actions',
  runFiles: 'Files of the run',
  dismiss: 'Dismiss',
  // toolbar
  chartOptions: 'Chart options', xAxis: 'X axis', axisStep: 'Steps', axisEpoch: 'Epochs', axisTokens: 'Tokens', axisTime: 'Time',
  smoothing: 'Smoothing', raw: 'Raw values', logScale: 'Log scale', clip: 'Outliers', clipNone: 'Show all',
  clipP99: 'Clip above p99',
  clipP95: 'Clip above p95', marks: 'Marks', resetZoom: 'Reset zoom', addRuns: 'Compare with…', exportPng: 'Save charts as PNG',
  exportCsv: 'Save metrics as CSV', tables: 'Tables',
  zoomHint: 'Drag to zoom, Ctrl+wheel to zoom, Shift+wheel to move, double-click to reset.',
  // legend
  runs: 'Runs', showRun: 'Show {0}', removeRun: 'Remove {0}', runSummary: '{0}, {1}, step {2}, loss {3}',
  // charts
  chartLoss: 'Training loss', chartEvalLoss: 'Eval loss', chartLearningRate: 'Learning rate', chartGradNorm: 'Gradient norm',
  chartSpeed: 'Tokens per second', chartMemory: 'Memory', chartGpu: 'GPU utilisation', chartGpuTemperature: 'GPU temperature', chartGpuPower: 'GPU power', gpu: 'GPU', planned: 'planned', measured: 'measured',
  smoothed: 'smoothed', rawValue: 'raw', evaluation: 'eval', perplexity: 'perplexity {0}',
  noEvaluation: 'No evaluation yet', neverEvaluated: 'This run was not evaluated',
  noValues: 'No values yet', chartSummary: '{0}: {1} at {2}, lowest {3}, highest {4}.',
  chartEmpty: '{0}: no values yet.',
  chartKeys: 'Left and right arrows read values, plus and minus zoom, 0 shows everything.', table: 'Values of {0}',
  last: 'Last',
  lowest: 'Lowest', highest: 'Highest',
  // marks
  markCheckpoint: 'checkpoint', markNonFinite: 'not finite', markResume: 'resumed', markPause: 'paused',
  markStop: 'stopped', markFail: 'failed',
  // announcements
  announceStep: '{0}: {1}, step {2}, loss {3}.', announceOf: '{0} of {1}', announceLeft: '{0} left.', announceState: '{0}: {1}.',
} as const

export type PanelStringKey = keyof typeof panelStrings
export type PanelStrings = Readonly<Record<PanelStringKey, string>>

/** Puts values for {0}, {1}, … . */
export const fill = (text: string, ...values: readonly (string | number)[]): string =>
  text.replace(/\{(\d+)\}/g, (whole, index: string) => String(values[Number(index)] ?? whole))
