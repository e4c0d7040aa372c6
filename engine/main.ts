import { describeError } from '#shared/errors.ts'
import { exitCodeOf, parseArgs } from './cli/args.ts'

/** The program: runs one command line (without the program's own name) and resolves to its exit code. */
export async function main(argv: readonly string[]): Promise<number> {
  try {
    const args = parseArgs(argv)
    switch (args.command) {
      case 'version': {
        const { programVersion } = await import('./cli/doctor.ts')
        console.log(programVersion())
        return 0
      }
      case 'doctor': {
        const { doctor, doctorExitCode, formatDoctor } = await import('./cli/doctor.ts')
        const report = await doctor()
        console.log(args.flags.json ? JSON.stringify(report, null, 2) : formatDoctor(report))
        return doctorExitCode(report)
      }
      default: {
        const { helpText } = await import('./cli/help.ts')
        console.log(helpText(args.command === 'help' ? args.topic : null))
        return args.command === 'help' ? 0 : 2
      }
    }
  } catch (error) {
    console.error(describeError(error))
    return exitCodeOf(error)
  }
}
