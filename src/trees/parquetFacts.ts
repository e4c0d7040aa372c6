import { open } from 'node:fs/promises'
import { parquetMetadataAsync, parquetSchema } from 'hyparquet'
import type { TableFacts } from './tableFacts.ts'

/** Rows and columns of a Parquet file, from its footer. */
export async function parquetFacts(path: string): Promise<TableFacts> {
  const file = await open(path, 'r')
  try {
    const { size } = await file.stat()
    const slice = async (start: number, end = size): Promise<ArrayBuffer> => {
      const bytes = new Uint8Array(end - start)
      const { bytesRead } = await file.read(bytes, 0, bytes.length, start)
      return bytes.buffer.slice(0, bytesRead)
    }
    const metadata = await parquetMetadataAsync({ byteLength: size, slice })
    const columns = parquetSchema(metadata).children.map(({ element }) => element.name)
    return { rows: Number(metadata.num_rows), exact: true, columns, format: 'Parquet' }
  } catch (error) {
    return {
      rows: 0,
      exact: false,
      columns: [],
      format: 'Parquet',
      problem: error instanceof Error ? error.message : String(error),
    }
  } finally {
    await file.close()
  }
}
