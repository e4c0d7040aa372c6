import type { PanelRunState } from '#shared/panelProtocol.ts'
import { runStates } from '#shared/runState.ts'

/** Every state that a panel can show. */
export const shownStatesOf = (): readonly PanelRunState[] => [...runStates, 'interrupted', 'missing']
