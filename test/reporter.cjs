// Reporter of `npm test`: one line for each top-level suite, failures in full at the end, and the counts as JSON in the file
// that the option `counts` names.
const { writeFileSync } = require('node:fs')
const { reporters, Runner } = require('mocha')

const { EVENT_SUITE_BEGIN, EVENT_SUITE_END, EVENT_TEST_FAIL, EVENT_TEST_PASS, EVENT_TEST_PENDING, EVENT_RUN_END } =
  Runner.constants

/** Top-level suite that a test or suite stands in. */
const top = (item) => (item.root || item.parent?.root !== false ? item : top(item.parent))

module.exports = class SuiteReporter extends reporters.Base {
  constructor(runner, options) {
    super(runner, options)
    let passed = 0,
      failed = 0,
      start = 0
    const counts = { passed: 0, failed: 0, pending: 0 }
    runner.on(EVENT_SUITE_BEGIN, (suite) => {
      if (suite.root || top(suite) !== suite) return
      passed = failed = 0
      start = performance.now()
    })
    runner.on(EVENT_TEST_PASS, () => {
      passed++
      counts.passed++
    })
    runner.on(EVENT_TEST_FAIL, (test) => {
      failed++
      counts.failed++
      console.log(`  ✗ ${test.fullTitle()}`)
    })
    runner.on(EVENT_TEST_PENDING, (test) => {
      counts.pending++
      console.log(`  ✗ ${test.fullTitle()}: skipped`)
    })
    runner.on(EVENT_SUITE_END, (suite) => {
      if (suite.root || top(suite) !== suite || passed + failed === 0) return
      const tests = failed === 0 ? `${passed} passed` : `${passed} passed, ${failed} failed`
      console.log(`  ${failed === 0 ? '✓' : '✗'} ${suite.title}: ${tests} (${((performance.now() - start) / 1000).toFixed(2)} s)`)
    })
    runner.once(EVENT_RUN_END, () => {
      if (this.failures.length > 0) reporters.Base.list(this.failures)
      writeFileSync(options.reporterOptions.counts, JSON.stringify(counts))
      // Only fires while something keeps the process alive: a server, socket, timer or child that a test forgot.
      setTimeout(() => {
        console.log(`  ✗ the tests left something open: ${process.getActiveResourcesInfo().join(', ')}`)
        writeFileSync(options.reporterOptions.counts, JSON.stringify({ ...counts, failed: counts.failed + 1 }))
        process.exit(1)
      }, 15_000).unref()
    })
  }
}
