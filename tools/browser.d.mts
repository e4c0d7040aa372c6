/** The browser that tests drive, or undefined. */
export function findBrowser(): string | undefined

/** Undefined when there is a browser, else what to do. */
export function missingBrowser(): string | undefined
