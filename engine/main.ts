import { describeError, UnslothError } from '#shared/errors.ts'
import { exitCodeOf, parseArgs, type ParsedArgs } from './cli/args.ts'
import { isDataThread } from './data/encodeRows.ts'

// The same bundle is the script of the threads that prepare data.
if (isDataThread()) void import('./data/encodeThread.ts')

/** The program: runs one command line (without the program's own name) and resolves to its exit code. */
export async function main(argv: readonly string[]): Promise<number> {
  try {
    const args = parseArgs(argv)
    if ('warnings' in args) for (const warning of args.warnings) console.error(`warning: ${warning}`)
    return await run(args)
  } catch (error) {
    console.error(`error: ${describeError(error)}`)
    if (argv.includes('--json')) console.log(JSON.stringify({ error: errorForPrograms(error) }))
    return exitCodeOf(error)
  }
}

/** What a program that asked for JSON reads of a failure. */
function errorForPrograms(error: unknown): { code: string; message: string; hint?: string } {
  if (!(error instanceof UnslothError)) return { code: 'INTERNAL', message: describeError(error) }
  return { code: error.code, message: error.message, ...(error.hint === undefined ? {} : { hint: error.hint }) }
}

/** Each command is loaded when it is asked for, so that the others start at once. */
async function run(args: ParsedArgs): Promise<number> {
  switch (args.command) {
    case 'version': {
      const { programVersion } = await import('./cli/doctor.ts')
      console.log(programVersion())
      return 0
    }
    case 'help': {
      const { helpText } = await import('./cli/help.ts')
      console.log(helpText(args.topic))
      return 0
    }
    case 'doctor': {
      const { doctor, doctorExitCode, formatDoctor } = await import('./cli/doctor.ts')
      const report = await doctor()
      console.log(args.flags.json ? JSON.stringify(report, null, 2) : formatDoctor(report))
      return doctorExitCode(report)
    }
    case 'inspect': {
      const { inspect } = await import('./cli/inspect.ts')
      console.log(await inspect(args.positionals[0]!, { json: args.flags.json }))
      return 0
    }
    case 'finetune':
      return (await import('./cli/commands/finetune.ts')).finetuneCommand(args)
    case 'data':
      return (await import('./cli/commands/data.ts')).dataCommand(args)
    case 'tokenizer':
      return (await import('./cli/commands/tokenizer.ts')).tokenizerCommand(args)
    case 'run':
      return (await import('./cli/commands/run.ts')).runCommand(args)
    case 'resume':
      return (await import('./cli/commands/resume.ts')).resumeCommand(args)
    case 'status':
      return (await import('./cli/commands/status.ts')).statusCommand(args)
    case 'stop':
      return (await import('./cli/commands/control.ts')).stopCommand(args)
    case 'pause':
      return (await import('./cli/commands/control.ts')).pauseCommand(args)
    case 'generate':
      return (await import('./cli/commands/generate.ts')).generateCommand(args)
    case 'merge':
      return (await import('./cli/commands/merge.ts')).mergeCommand(args)
    case 'verify':
      return (await import('./cli/commands/verify.ts')).verifyCommand(args)
    case 'gpu-check':
      return (await import('./cli/commands/gpuCheck.ts')).gpuCheckCommand(args)
    case 'bench':
      return (await import('./cli/commands/bench.ts')).benchCommand(args)
    case 'demo':
      return (await import('./cli/commands/demo.ts')).demoCommand(args)
    case 'docs':
      return (await import('./cli/commands/docs.ts')).docsCommand(args)
    case 'memory-case':
      return (await import('./cli/commands/memoryCase.ts')).memoryCaseCommand(args)
    case 'gpu-overhead':
      return (await import('./cli/commands/gpuOverhead.ts')).gpuOverheadCommand(args)
    case 'serve':
      return (await import('./cli/commands/serve.ts')).serveCommand()
  }
}
