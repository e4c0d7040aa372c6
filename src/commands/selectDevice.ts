import * as vscode from 'vscode'
import { engineRequests, type DeviceEntry } from '#shared/protocol.ts'
import { formatBytes } from '#shared/units.ts'
import type { Settings } from '../contributions.ts'
import { readSetting, writeSetting } from '../editor.ts'
import type { Services } from '../services.ts'
import { ask } from './engineReports.ts'
import { choose } from './pick.ts'

type Device = Settings['unsloth.device']

/** Chooses where recipes with `device: auto` compute, among the devices that the engine finds here. */
export async function selectDevice(services: Services): Promise<void> {
  const { devices, noGpu } = await ask(services, vscode.l10n.t('Looking for devices'), engineRequests.devices, {})
  const now = readSetting('unsloth.device')
  const gpus = devices.filter(({ id }) => id.startsWith('cuda'))
  const cpu = devices.find(({ id }) => id === 'cpu')
  const item = (device: Device, description: string, detail?: string) => ({
    device,
    label: `${device === now ? '$(check) ' : ''}${device}`,
    description,
    ...(detail === undefined ? {} : { detail }),
  })
  const items = [
    item('auto', vscode.l10n.t('the best device there is: {0}', devices[0]?.label ?? 'cpu')),
    ...(cpu === undefined ? [] : [item('cpu', deviceText(cpu))]),
    // One that is not there may be chosen all the same: a recipe then says why it cannot run.
    item(
      'cuda',
      gpus[0] === undefined ? vscode.l10n.t('no GPU here') : deviceText(gpus[0]),
      gpus[0] === undefined ? noGpu : undefined,
    ),
    ...(gpus.length < 2 ? [] : gpus.map((gpu) => item(gpu.id as `cuda:${number}`, deviceText(gpu)))),
  ]
  const { device } = await choose(items, {
    title: vscode.l10n.t('Select Device'),
    placeHolder: vscode.l10n.t('Where to compute when the recipe does not say'),
  })
  await writeSetting('unsloth.device', device)
}

const deviceText = ({ label, freeBytes, totalBytes }: DeviceEntry): string =>
  freeBytes === undefined
    ? `${label}, ${formatBytes(totalBytes)}`
    : vscode.l10n.t('{0}, {1} free of {2}', label, formatBytes(freeBytes), formatBytes(totalBytes))
