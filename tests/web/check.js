// A runner for tests that share one browser: in order, each bounded in time, and a last line that counts.

const TEST_MS_MAX = 90_000;
const tests = [];

export function test(name, run) {
  tests.push({ name, run });
}

/** Runs those whose name holds `filter`. Returns how many failed. */
export async function runTests(filter = '') {
  let [passed, failed] = [0, 0];
  for (const { name, run } of tests.filter((it) => it.name.includes(filter))) {
    try {
      await within(TEST_MS_MAX, Promise.resolve().then(run), name);
      passed += 1;
      console.log(`ok    ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAIL  ${name}\n${String(error.stack ?? error).replace(/^/gm, '      ')}`);
    }
  }
  console.log(`${passed} passed, ${failed} failed`);
  return failed;
}

export async function within(ms, promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${ms / 1000} s`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
