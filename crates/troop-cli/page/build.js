// Builds the page into built/, compressed, as build.rs embeds it. What does not change is not written, so that cargo builds nothing again.

import { build } from 'esbuild';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';

/** The most bytes that all files may have together, compressed. */
const MAX_SIZE = 60_000;

const here = (path) => new URL(path, import.meta.url).pathname;

const { outputFiles } = await build({
  entryPoints: [here('src/app.tsx')],
  bundle: true,
  minify: true,
  format: 'esm',
  target: 'es2022',
  jsx: 'automatic',
  jsxImportSource: 'preact',
  legalComments: 'none',
  outdir: here('built'),
  write: false,
});
const files = outputFiles.map(({ path, contents }) => [path.slice(path.lastIndexOf('/') + 1), contents]);
files.push(['index.html', readFileSync(here('src/index.html'))]);
// Who copies the page copies these, too, as their licences want it.
const licences = ['preact', 'uplot'].map((name) => `${name}\n\n${readFileSync(here(`node_modules/${name}/LICENSE`), 'utf8')}`);
files.push(['licences.txt', Buffer.from(licences.join('\n\n'))]);

let size = 0;
for (const [name, contents] of files) {
  const path = here(`built/${name}.gz`);
  const compressed = gzipSync(contents, { level: 9 });
  size += compressed.length;
  console.log(`${name}: ${contents.length} bytes, ${compressed.length} compressed`);
  if (!existsSync(path) || !readFileSync(path).equals(compressed)) writeFileSync(path, compressed);
}
if (size > MAX_SIZE) {
  console.error(`the page has ${size} bytes, and may have ${MAX_SIZE}`);
  process.exit(1);
}
