/** README.md with its settings table as it has to be. */
export function readmeWithSettings(): string
