import fs from 'node:fs'
import { join } from 'node:path'
import { UnslothError } from '#shared/errors.ts'
import { heartbeatInterval } from '#shared/runState.ts'
import type { LockOwner } from './exclusiveLock.ts'
import { createExclusively, ExclusiveLock, livingOwner, ownerText } from './exclusiveLock.ts'
import { fileWriteError, nodeFs, readNames, removeQuietly } from './files.ts'
import { runtimeFolder } from './runtimeFolder.ts'

/** The right to use a device, until it is released or the process ends. */
export interface DeviceLease {
  readonly device: string
  release(): void
}

export interface WaitOptions {
  /** Gives the place in the queue up; the wait rejects with STOPPED. */
  readonly signal?: AbortSignal
  /** Called when it is clear that one has to wait, and at each change: `ahead` runs come first, `owner` has the device. */
  readonly onWait?: (ahead: number, owner: LockOwner | undefined) => void
  /** Milliseconds between two looks. */
  readonly interval?: number
}

/**
 * Waits for `device` (`cpu`, `cuda:0`) in the order of arrival among all processes of this user on this machine. Numbered
 * tickets give the order and a lock gives the right, so a slow or killed process costs at most its place. `purpose` tells
 * others who has the device: the run's name.
 */
export async function acquireDevice(device: string, purpose: string, options: WaitOptions = {}): Promise<DeviceLease> {
  const { signal, onWait, interval = 250 } = options
  const folder = join(runtimeFolder(), `device-${device.replace(/[^A-Za-z0-9]+/g, '-')}`)
  const lockFolder = join(folder, 'lock')
  const queue = join(folder, 'queue')
  try {
    fs.mkdirSync(queue, { recursive: true, mode: 0o700 })
  } catch (error) {
    throw fileWriteError(error, queue)
  }
  let ticket = await takeTicket(queue, purpose)
  let told = ''
  let touched = Date.now()
  try {
    for (;;) {
      if (signal?.aborted) throw new UnslothError('STOPPED', `stopped while waiting for ${device}`)
      const ahead = await countAhead(queue, ticket)
      // A ticket that was swept away with its folder is taken anew.
      if (ahead === undefined) ticket = await takeTicket(queue, purpose)
      let owner: LockOwner | undefined
      if (ahead === 0) {
        const lock = await ExclusiveLock.acquire(lockFolder, purpose)
        if (lock instanceof ExclusiveLock) return lease(device, lock)
        owner = lock
      } else {
        owner = await ExclusiveLock.owner(lockFolder)
      }
      const state = `${ahead}:${owner?.pid}`
      if (state !== told) onWait?.((ahead ?? 0) + (owner === undefined ? 0 : 1), owner)
      told = state
      if (Date.now() - touched > heartbeatInterval) {
        touchQuietly(join(queue, ticketName(ticket)))
        touched = Date.now()
      }
      await changeOf([queue, lockFolder], interval, signal)
    }
  } finally {
    removeQuietly(nodeFs, join(queue, ticketName(ticket)))
  }
}

/** Who has the device now; undefined when it is free. */
export function deviceOwner(device: string): Promise<LockOwner | undefined> {
  return ExclusiveLock.owner(join(runtimeFolder(), `device-${device.replace(/[^A-Za-z0-9]+/g, '-')}`, 'lock'))
}

function lease(device: string, lock: ExclusiveLock): DeviceLease {
  const timer = setInterval(() => lock.touch(), heartbeatInterval)
  timer.unref()
  return {
    device,
    release() {
      clearInterval(timer)
      lock.release()
    },
  }
}

const ticketName = (ticket: number): string => `${String(ticket).padStart(8, '0')}.ticket`

const ticketsIn = (queue: string): number[] =>
  readNames(queue)
    .filter((name) => /^\d+\.ticket$/.test(name))
    .map((name) => parseInt(name, 10))
    .sort((a, b) => a - b)

async function takeTicket(queue: string, purpose: string): Promise<number> {
  const text = await ownerText(purpose)
  fs.mkdirSync(queue, { recursive: true, mode: 0o700 })
  for (;;) {
    const ticket = (ticketsIn(queue).at(-1) ?? 0) + 1
    if (createExclusively(nodeFs, join(queue, ticketName(ticket)), text)) return ticket
  }
}

/** How many living ones come first; undefined when the own ticket is gone. Tickets of dead processes are removed. */
async function countAhead(queue: string, own: number): Promise<number | undefined> {
  const tickets = ticketsIn(queue)
  if (!tickets.includes(own)) return undefined
  let ahead = 0
  for (const ticket of tickets) {
    if (ticket >= own) break
    const path = join(queue, ticketName(ticket))
    if ((await livingOwner(path)) === undefined) removeQuietly(nodeFs, path)
    else ahead++
  }
  return ahead
}

function touchQuietly(path: string): void {
  try {
    const now = new Date()
    fs.utimesSync(path, now, now)
  } catch {
    // Found missing at the next look.
  }
}

/** Resolves when something in the folders changes, after `interval` at the latest, or when the signal is aborted. */
async function changeOf(folders: readonly string[], interval: number, signal: AbortSignal | undefined): Promise<void> {
  await new Promise<void>((resolve) => {
    const watchers: fs.FSWatcher[] = []
    const done = (): void => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', done)
      for (const watcher of watchers) watcher.close()
      resolve()
    }
    const timer = setTimeout(done, interval)
    signal?.addEventListener('abort', done, { once: true })
    for (const folder of folders) {
      try {
        // A change of times alone (another one's sign of life) says nothing new.
        const watcher = fs.watch(folder, (event) => (event === 'rename' ? done() : undefined))
        watcher.on('error', () => undefined)
        watchers.push(watcher)
      } catch {
        // Not there yet, or no notifications: the timer does it.
      }
    }
  })
}
