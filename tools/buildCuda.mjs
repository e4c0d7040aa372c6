// Compiles the CUDA kernels for every GPU that they run on: what a package carries. `npm run build:cuda`; takes long.
import { BuildError } from './common.mjs'
import { buildCuda } from './kernels.mjs'

try {
  buildCuda({ tell: true, all: true })
} catch (error) {
  if (!(error instanceof BuildError)) throw error
  console.error(error.message)
  process.exitCode = 1
}
