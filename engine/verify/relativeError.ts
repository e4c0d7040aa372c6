/** ‖ours − reference‖ / ‖reference‖; 0 when they are equal. */
export function relativeError(ours: ArrayLike<number>, reference: ArrayLike<number>): number {
  let difference = 0
  let size = 0
  for (let i = 0; i < reference.length; ++i) {
    difference += (ours[i]! - reference[i]!) ** 2
    size += reference[i]! ** 2
  }
  return difference === 0 ? 0 : Math.sqrt(difference / size)
}
