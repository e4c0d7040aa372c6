import type { DType } from './dtype.ts'

/**
 * 0: sums and products in fp32; 1: operands of products rounded to bf16 first (a GPU goes by the types of its operands instead); 2, on a
 * GPU: those of the model's products with fp32 activations rounded to TF32.
 */
export type PrecisionCode = 0 | 1 | 2

/** The number formats and the granularity that plans are built for. */
export interface Target {
  readonly kind: 'cpu' | 'cuda'
  readonly precision: PrecisionCode
  /** Type of activations and their gradients. Statistics, losses and sums are fp32 or wider everywhere. */
  readonly activation: 'f32' | 'bf16' | 'f16'
  /** Type in which trained matrices enter products. Other than fp32, it is a copy of the fp32 masters made after each update. */
  readonly parameters: 'f32' | 'bf16' | 'f16'
  /** Type that frozen weights are converted to; undefined keeps the stored one. */
  readonly weights: DType | undefined
  /** Type that quantised matrices are turned into for products; undefined where products take them as they are. */
  readonly unpacked: DType | undefined
  /** Rows of a micro-step are rounded up to a multiple of this; see padStep. */
  readonly rowMultiple: number
  /** Rows at a time of commands that work row by row, where a micro-step has more; see rowTiles.ts. */
  readonly tileRows: number
}

export type Compute = 'float32' | 'tfloat32' | 'bfloat16' | 'float16'

/** Whether results on a GPU differ from fp32 by the rounding of 8 or 11 bits. */
export const roundsOn = ({
  activation,
  precision,
}: Pick<Target, 'activation' | 'precision'>): 'bf16' | 'f16' | 'tf32' | undefined =>
  activation !== 'f32' ? activation : precision === 2 ? 'tf32' : undefined

/** A processor computes in fp32; with bfloat16 the operands of products are rounded. */
export const cpuTarget = (compute: 'float32' | 'bfloat16' = 'float32'): Target => ({
  kind: 'cpu',
  precision: compute === 'bfloat16' ? 1 : 0,
  activation: 'f32',
  parameters: 'f32',
  weights: undefined,
  unpacked: undefined,
  rowMultiple: 1,
  tileRows: 2048,
})

/** A GPU keeps activations, frozen weights and copies of the trained ones in one type, which its tensor cores multiply. */
export function cudaTarget(compute: Compute = 'bfloat16'): Target {
  const type = ({ float32: 'f32', tfloat32: 'f32', bfloat16: 'bf16', float16: 'f16' } as const)[compute]
  return {
    kind: 'cuda',
    precision: compute === 'tfloat32' ? 2 : type === 'bf16' ? 1 : 0,
    activation: type,
    parameters: type,
    weights: type === 'f32' ? undefined : type,
    unpacked: type,
    rowMultiple: 128,
    tileRows: 16_384,
  }
}
