import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { computeModes } from '../../engine/gpucheck/computeModes.ts'
import { chooseDevice, usableGpus } from '../../engine/runtime/chooseDevice.ts'
import { caseNames, unpackCases, verifyCase } from '../golden/verifyCase.ts'

describe('models made by transformers and PEFT, on a GPU', () => {
  let folder: string
  before(async () => {
    folder = await unpackCases()
  })
  after(() => rm(folder, { recursive: true }))

  for (const compute of computeModes(usableGpus().gpus[0]?.capability ?? 0))
    for (const name of caseNames) it(`${name} in ${compute}`, () => verifyCase(join(folder, name), chooseDevice('cuda'), compute))
})
