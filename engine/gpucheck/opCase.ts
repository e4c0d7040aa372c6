import type { CommandName } from '../graph/commands.ts'
import type { DType } from '../graph/dtype.ts'
import type { Place } from '../native.ts'

/** What an operand holds before the command runs. */
export type Fill =
  | { readonly kind: 'normal'; readonly scale: number }
  | { readonly kind: 'positive' }
  | { readonly kind: 'value'; readonly value: number }
  | { readonly kind: 'numbers'; readonly numbers: readonly number[] }
  /** A quantised matrix as it stands in memory. */
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array }

/** One operand: `numbers` says whether it takes the activations' type, a fixed one, or is an index. */
export interface OpOperand {
  readonly rows: number
  readonly cols: number
  /** `activation`: the type under test; the processor holds the same values in fp32. */
  readonly type: 'activation' | DType
  readonly fill: Fill
  /** Takes the memory of the operand with this number. */
  readonly sameAs?: number
}

/** A command on made-up operands, run on both devices and compared. */
export interface OpCase {
  readonly command: CommandName
  /** Tells it from other cases of the same command. */
  readonly label: string
  readonly operands: readonly (OpOperand | undefined)[]
  readonly ints: readonly number[]
  readonly floats: readonly number[]
  /** Tokens and sequences, for commands whose work depends on the counts of the run. */
  readonly tokens?: number
  readonly sequences?: number
  /** Where the operands lie; on the device when absent. */
  readonly place?: Place
  /** Operands that are compared although they are not outputs by the signature, and outputs that are only scratch. */
  readonly ignore?: readonly number[]
}

export const x = (rows: number, cols: number, scale = 1): OpOperand => ({
  rows,
  cols,
  type: 'activation',
  fill: { kind: 'normal', scale },
})
/** An output; full of a number that would show if it stayed. */
export const y = (rows: number, cols: number): OpOperand => ({
  rows,
  cols,
  type: 'activation',
  fill: { kind: 'value', value: 77 },
})
export const stat = (rows: number, cols: number): OpOperand => ({ rows, cols, type: 'f32', fill: { kind: 'value', value: 77 } })
export const f32 = (rows: number, cols: number, scale = 1): OpOperand => ({
  rows,
  cols,
  type: 'f32',
  fill: { kind: 'normal', scale },
})
export const positive = (rows: number, cols: number): OpOperand => ({ rows, cols, type: 'f32', fill: { kind: 'positive' } })
export const zeros = (rows: number, cols: number, type: DType = 'f32'): OpOperand => ({
  rows,
  cols,
  type,
  fill: { kind: 'value', value: 0 },
})
export const numbers = (type: DType, values: readonly number[], cols = 1): OpOperand => ({
  rows: values.length / cols,
  cols,
  type,
  fill: { kind: 'numbers', numbers: values },
})
export const column = (values: readonly number[]): OpOperand => numbers('i32', values)
