import { fetchModel } from '../../../../engine/hub/modelFiles.ts'

/** Fetches the model named on the command line with the settings of the environment, and prints where it is. */
const { folder } = await fetchModel(process.argv[2]!, null, {
  onProgress: ({ bytes, waiting }) => console.error(`${bytes} ${waiting ?? ''}`),
})
console.log(folder)
