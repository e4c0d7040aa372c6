/** The whole text of THIRD_PARTY_NOTICES.md as it has to be. */
export function notices(): Promise<string>
