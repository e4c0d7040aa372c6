/** What comparing one golden case with the reference gave; the list is in proofs.ts. */
export interface Proof {
  readonly case: string
  /** The Hub's class name. */
  readonly architecture: string
  /** Quantities compared. */
  readonly quantities: number
  /** Worst relative error of each kind. */
  readonly logits: number
  readonly gradients: number
  /** Losses, gradient norms and final weights of a short training. */
  readonly training: number
  /** Greedy tokens equal to the reference's. */
  readonly greedy: boolean
}
