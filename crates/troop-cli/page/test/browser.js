// What a person does with the page, in a real browser: node browser.js CHROMIUM ADDRESS TOKEN SCENARIO. Ends with 1 and the reason if something is not as it should be.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import http from 'node:http';
import { createRequire } from 'node:module';
import { existsSync, mkdtempSync, readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { chromium } from 'playwright-core';

const [program, address, token, scenario] = process.argv.slice(2);
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
/** A wait that is over means that something never comes. */
const TIMEOUT = 30_000;

const troop = (...args) => promisify(execFile)(process.env.TROOP, args);

// It goes with the directory in which this runs.
const directory = mkdtempSync(path.join(process.cwd(), 'browser-'));
// Libraries that Debian's packages have, which may be unpacked beside it only.
const beside = path.join(path.dirname(program), '..');
const places = readdirSync(beside).filter((name) => name.endsWith('-linux-gnu')).map((name) => path.join(beside, name));
const libraries = places.flatMap((place) => [place, path.join(place, 'pulseaudio')]).join(':');
const root = path.join(program, '../../../..');
const fonts = existsSync(path.join(root, 'etc/fonts/fonts.conf')) ? { FONTCONFIG_SYSROOT: root } : {};
const context = await chromium.launchPersistentContext(directory, {
  executablePath: program,
  env: { ...process.env, HOME: directory, LD_LIBRARY_PATH: libraries, ...fonts },
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  viewport: { width: 1280, height: 900 },
});
context.setDefaultTimeout(TIMEOUT);
const page = context.pages()[0] ?? await context.newPage();

const problems = [];
page.on('pageerror', (e) => problems.push(`an error in the page: ${e}`));
page.on('console', (said) => {
  // A status of 401 or 409 is a part of some of these, and reported by the browser itself.
  if (said.type() === 'error' && !said.text().startsWith('Failed to load resource')) problems.push(said.text());
});
context.on('request', (request) => {
  if (new URL(request.url()).host !== address && !request.url().startsWith('data:')) problems.push(`a request to another site: ${request.url()}`);
});

const open = () => page.goto(`http://${address}/`);
const give = async (text) => {
  await page.getByLabel('Token').fill(text);
  await page.keyboard.press('Enter');
};
const login = async () => {
  await open();
  await give(token);
  await page.getByRole('heading', { name: 'Apps' }).waitFor();
};
const openApp = async (name) => {
  await login();
  await page.getByRole('link', { name, exact: true }).first().click();
  await page.getByRole('heading', { name, exact: true }).waitFor();
};
const section = (name) => page.getByRole('region', { name, exact: true });
const readyRows = () => section('Workers').last().getByRole('row').filter({ hasText: 'ready' });
const count = async (locator, wanted) => {
  await locator.nth(wanted - 1).waitFor();
  await locator.nth(wanted).waitFor({ state: 'detached' });
};
const findings = async () => {
  // Not by a script element, which the page's policy would rightly refuse.
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => axe.run());
  const serious = violations.filter(({ impact }) => impact === 'serious' || impact === 'critical');
  return serious.map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html} ${node.failureSummary}`).join('; ')}`);
};
const screenshot = async (name) => {
  if (process.env.TROOP_SCREENSHOTS) await page.screenshot({ path: path.join(process.env.TROOP_SCREENSHOTS, `${name}.png`), fullPage: true });
};
const columns = async () => ({
  scrolls: await page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth),
});

const scenarios = {
  async load() {
    await openApp('web');
    await count(readyRows(), 2);
    await section('Listeners').last().getByRole('rowheader', { name: /^127\.0\.0\.1:\d+$/ }).waitFor();
    // Plots come with the first sample, and have been drawn.
    await page.locator('canvas').nth(5).waitFor();
    await page.getByRole('img', { name: /^Memory in the last hour: now [\d.]+ MiB$/ }).waitFor();
    // The search finds what a worker has written, and nothing else.
    const lines = section('Log lines').locator('p');
    await page.getByLabel('Search').fill('/^served by \\d/');
    await lines.filter({ hasText: 'served by' }).first().waitFor();
    await lines.filter({ hasNotText: 'served by' }).first().waitFor({ state: 'detached' });
    // Lines that follow come by themselves.
    await page.getByLabel('Search').fill('a new line');
    await troop('send', 'web', '"a new line"');
    await count(lines.filter({ hasText: 'a new line' }), 2);
    // The session lasts when the page is loaded again, and not after leaving.
    await page.reload();
    await page.getByRole('heading', { name: 'web', exact: true }).waitFor();
    const cookies = await context.cookies();
    assert.deepEqual(cookies.map(({ httpOnly, sameSite }) => [httpOnly, sameSite]), [[true, 'Strict']]);
    assert.ok(!JSON.stringify(cookies).includes(token) && !(await page.content()).includes(token), 'the token is in the page');
    await page.getByRole('button', { name: 'Log out' }).click();
    await page.getByLabel('Token').waitFor();
    await page.reload();
    await page.getByLabel('Token').waitFor();
  },

  async reload() {
    await openApp('web');
    await count(readyRows(), 2);
    const before = await readyRows().allTextContents();
    // Clients that keep their connections open.
    const host = await section('Listeners').last().getByRole('rowheader').first().innerText();
    const agent = new http.Agent({ keepAlive: true });
    await Promise.all(Array.from({ length: 8 }, () => new Promise((done, fail) => {
      http.get(`http://${host}/`, { agent }, (answer) => answer.resume().on('end', done)).on('error', fail);
    })));
    const reloading = troop('reload', 'web');
    // Seen while it goes on: the old workers leave with their connections.
    await section('Connections on the move').waitFor();
    await section('Connections on the move').getByText(/^draining: \d workers?$/).waitFor();
    await section('Connections on the move').getByText(/^[1-9]\d* moved/).waitFor();
    await reloading;
    await count(readyRows(), 2);
    agent.destroy();
    assert.notDeepEqual(await readyRows().allTextContents(), before);
    await section('Events, the newest first').getByText('reload', { exact: false }).first().waitFor();
  },

  async scale() {
    await openApp('web');
    await count(readyRows(), 2);
    assert.equal(await page.getByRole('button', { name: 'Restart' }).count(), 0, 'a verb that is not allowed');
    // With the keyboard alone.
    await page.getByLabel('Workers', { exact: true }).and(page.locator('input')).focus();
    await page.keyboard.press('ControlOrMeta+a');
    await page.keyboard.type('3');
    await page.keyboard.press('Tab');
    await page.keyboard.press('Space');
    await page.getByRole('status').getByText(/^scale: .*workers 3/).waitFor();
    await count(readyRows(), 3);
    await page.getByRole('button', { name: 'Reload', exact: true }).click();
    await page.getByRole('status').getByText(/^reload: .*replaced 3/).waitFor();
  },

  async wrong() {
    await open();
    await give(`${token}x`);
    await page.getByRole('alert').getByText('this is not the token').waitFor();
    assert.deepEqual(await context.cookies(), []);
    const snapshot = await page.evaluate(async () => (await fetch('/snapshot')).status);
    assert.equal(snapshot, 401);
    await give(token);
    await page.getByRole('heading', { name: 'Apps' }).waitFor();
    // The cookie alone, as another server of this host may see it, is of no use.
    assert.equal(await page.evaluate(async () => (await fetch('/snapshot')).status), 401);
    // Nor may the page be shown in another one, or run what is written into it.
    const refused = await page.evaluate(() => new Promise((done) => {
      document.addEventListener('securitypolicyviolation', (e) => done(e.violatedDirective));
      document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran = true' }));
    }));
    assert.match(refused, /^script-src/);
    problems.length = 0;
    assert.equal(await page.evaluate('window.ran'), undefined);
  },

  async many() {
    await openApp('web');
    await count(readyRows(), 50);
    await page.getByRole('button', { name: 'Replace worker 50' }).click();
    await page.getByRole('status').getByText(/^reload: .*replaced 1/).waitFor();
    assert.deepEqual(await findings(), []);
    // It stays usable: the search answers while all of them are shown and change.
    await page.getByLabel('Search').fill('worker 50 listening');
    await count(section('Log lines').locator('p'), 1);
    await screenshot('many');
  },

  async accessible() {
    await open();
    await page.getByLabel('Token').waitFor();
    const all = [];
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme });
      all.push(...await findings());
      await screenshot(`login-${colorScheme}`);
    }
    await give(token);
    await page.getByRole('heading', { name: 'Apps' }).waitFor();
    for (const name of ['overview', 'app']) {
      if (name === 'app') {
        await page.getByRole('link', { name: 'web', exact: true }).first().click();
        await page.locator('canvas').nth(5).waitFor();
        await section('Log lines').locator('p').first().waitFor();
      }
      for (const [width, colorScheme] of [[1280, 'light'], [1280, 'dark'], [390, 'dark']]) {
        await page.emulateMedia({ colorScheme });
        await page.setViewportSize({ width, height: 900 });
        all.push(...await findings());
        assert.equal((await columns()).scrolls, false, `${name} is wider than ${width}`);
        await screenshot(`${name}-${colorScheme}-${width}`);
      }
    }
    await page.getByRole('button', { name: 'Restart' }).click();
    all.push(...await findings());
    await screenshot('question');
    assert.equal(await page.evaluate('document.activeElement.textContent'), 'Cancel');
    await page.keyboard.press('Escape');
    await page.getByRole('dialog').waitFor({ state: 'hidden' });
    assert.deepEqual(all, []);
  },
};

try {
  await scenarios[scenario]();
  assert.deepEqual(problems, []);
} catch (e) {
  console.error(e.stack ?? e, problems);
  console.error(await page.locator('body').innerText().catch(() => ''));
  process.exitCode = 1;
} finally {
  await context.close();
}
