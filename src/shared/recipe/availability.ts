import type { Availability } from './field.ts'

/** Whether a value asks for something at all: not off, not empty. */
export const isOn = (value: unknown): boolean =>
  value !== false && value !== null && value !== undefined && value !== '' && !(Array.isArray(value) && value.length === 0)

/** The run goes ahead, differently from what was asked in the way the note says. */
export function runsAs(note: string, applies: (value: unknown) => boolean = isOn): Availability {
  return { severity: 'warning', note, applies }
}

/** The run would not be what was asked for, so it is refused. */
export function notYet(note: string, applies: (value: unknown) => boolean = isOn): Availability {
  return { severity: 'error', note, applies }
}
