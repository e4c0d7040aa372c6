import type { ParsedCommand } from './args.ts'
import type { CommandName } from './commandTable.ts'

/** The checked command line of one command. */
export type CommandArgs<Name extends CommandName> = Extract<ParsedCommand, { readonly command: Name }>
