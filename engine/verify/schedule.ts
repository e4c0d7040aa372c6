export const linearSchedule = (step: number, warmup: number, total: number): number => (step < warmup ? step / warmup : (total - step) / (total - warmup))
