/** Uniform numbers in (0, 1), the same on every machine: Park and Miller (1988). */
function* uniforms(seed: number): Generator<number, never> {
  for (let state = seed; ;) {
    state = (state * 48_271) % 2_147_483_647
    yield state / 2_147_483_647
  }
}

/** Normal numbers of mean 0 and deviation 1, the same on every machine: Box and Muller (1958). */
export function* normals(seed: number): Generator<number, never> {
  const random = uniforms(seed)
  for (;;) yield Math.sqrt(-2 * Math.log(random.next().value)) * Math.cos(2 * Math.PI * random.next().value)
}
