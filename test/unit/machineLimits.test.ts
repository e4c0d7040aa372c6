import assert from 'node:assert/strict'
import type { ReadText } from '../../engine/runtime/controlGroups.ts'
import { cpuQuota, parseCpuList, physicalCores } from '../../engine/runtime/cores.ts'
import { availableMemory, totalMemory } from '../../engine/runtime/memory.ts'

/** A machine of four cores with two threads each; processor i + 4 is the second thread of core i. */
function machine(files: Readonly<Record<string, string>> = {}): ReadText {
  const all: Record<string, string> = {
    '/proc/self/status': 'Name:\tnode\nCpus_allowed_list:\t0-7\n',
    '/proc/self/cgroup': '0::/\n',
    '/proc/meminfo': 'MemTotal:       8000000 kB\nMemAvailable:   4000000 kB\n',
    ...files,
  }
  for (let cpu = 0; cpu < 8; ++cpu)
    all[`/sys/devices/system/cpu/cpu${cpu}/topology/core_cpus_list`] = `${cpu % 4},${(cpu % 4) + 4}\n`
  return (path) => all[path]
}

describe('machine limits', () => {
  it('reads lists of processors', () => {
    assert.deepEqual(parseCpuList('0-3,8,10-11\n'), [0, 1, 2, 3, 8, 10, 11])
  })

  it('counts physical cores, not threads', () => {
    assert.equal(physicalCores(machine()), 4)
  })

  it('counts only processors that the process may use', () => {
    assert.equal(physicalCores(machine({ '/proc/self/status': 'Cpus_allowed_list:\t0,1,5\n' })), 2)
  })

  it('respects the time limit of the control group and of those above it', () => {
    const nested = {
      '/proc/self/cgroup': '0::/pod/box\n',
      '/sys/fs/cgroup/pod/box/cpu.max': 'max 100000\n',
      '/sys/fs/cgroup/pod/cpu.max': '250000 100000\n',
    }
    assert.equal(cpuQuota(machine(nested)), 2.5)
    assert.equal(physicalCores(machine(nested)), 2)
    assert.equal(physicalCores(machine({ '/sys/fs/cgroup/cpu.max': '50000 100000\n' })), 1)
    assert.equal(cpuQuota(machine()), Infinity)
  })

  it('respects limits of version 1 control groups', () => {
    const folder = '/sys/fs/cgroup/cpu,cpuacct/box'
    const old = {
      '/proc/self/cgroup': '4:cpu,cpuacct:/box\n3:memory:/box\n',
      [`${folder}/cpu.cfs_quota_us`]: '300000\n',
      [`${folder}/cpu.cfs_period_us`]: '100000\n',
    }
    assert.equal(physicalCores(machine(old)), 3)
    assert.equal(cpuQuota(machine({ ...old, [`${folder}/cpu.cfs_quota_us`]: '-1\n' })), Infinity)
  })

  it('falls back on what the runtime says', () => {
    assert.ok(physicalCores(() => undefined) >= 1)
  })

  it('takes available memory from the machine, or what the control group leaves', () => {
    assert.equal(availableMemory(machine()), 4_000_000 * 1024)
    const limited = {
      '/sys/fs/cgroup/memory.max': '1000000000\n',
      '/sys/fs/cgroup/memory.current': '700000000\n',
      '/sys/fs/cgroup/memory.stat': 'anon 5\ninactive_file 200000000\n',
    }
    assert.equal(availableMemory(machine(limited)), 500_000_000)
    assert.equal(totalMemory(machine(limited)), 1_000_000_000)
  })
})
