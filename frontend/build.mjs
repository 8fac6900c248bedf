// Bundles every file of src/pages into src/cspine/web/static/built. Names hold a digest, manifest.json says which file
// is which, each file lies there gzipped too, and licences.txt carries the notices of what was bundled.
import { build } from "esbuild";
import { mkdir, readFile, readdir, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { constants, gzipSync } from "node:zlib";

const here = dirname(fileURLToPath(import.meta.url));
const built = resolve(here, "../src/cspine/web/static/built");
// Made aside and put in place at once: who looks meanwhile sees the old scripts, whole.
const out = `${built}.new`;
const pages = (await readdir(join(here, "src/pages"))).filter((name) => name.endsWith(".ts")).sort();

await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
const result = await build({
  absWorkingDir: here,
  entryPoints: pages.map((name) => join("src/pages", name)),
  outdir: out,
  entryNames: "[name]-[hash]",
  chunkNames: "part-[hash]",
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "none",
  metafile: true,
  // NiiVue can open Zarr, for which it brings 1.4 MB of decoders; nothing here is Zarr.
  alias: { zarrita: resolve(here, "src/stubs/zarrita.ts") },
  logLevel: "warning",
});

const manifest = {};
for (const [path, output] of Object.entries(result.metafile.outputs)) {
  const file = basename(path);
  if (output.entryPoint?.startsWith("src/pages/")) manifest[basename(output.entryPoint).replace(/\.ts$/, ".js")] = file;
  const text = await readFile(join(out, file));
  await writeFile(join(out, `${file}.gz`), gzipSync(text, { level: constants.Z_BEST_COMPRESSION }));
}
await writeFile(join(out, "licences.txt"), await licences(Object.keys(result.metafile.inputs)));
await writeFile(join(out, "manifest.json"), `${JSON.stringify(manifest, null, 2)}\n`);
await rm(built, { recursive: true, force: true });
await rename(out, built);
const bytes = Object.values(result.metafile.outputs).reduce((sum, one) => sum + one.bytes, 0);
console.log(`${pages.length} pages, ${Object.keys(result.metafile.outputs).length} files, ${bytes} bytes`);

/** The licence texts of the packages that inputs come from. */
async function licences(inputs) {
  const found = new Set();
  for (const input of inputs) {
    const name = /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input)?.[1];
    if (name) found.add(name);
  }
  const parts = [
    "Scripts in this folder contain code of these packages. NiiVue brings the typeface Roboto (Apache-2.0) as a picture.\n",
  ];
  for (const name of [...found].sort()) {
    const folder = join(here, "node_modules", name);
    const about = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
    const file = (await readdir(folder)).find((entry) => /^(licen[cs]e|copying)/i.test(entry));
    const kept = await readFile(join(here, "licences", `${name.replace("/", "__")}.txt`), "utf8").catch(() => null);
    const text = file ? await readFile(join(folder, file), "utf8") : kept;
    if (text === null) throw new Error(`${name} ships no licence text: put it into frontend/licences`);
    parts.push(`${"=".repeat(100)}\n${name} ${about.version} (${about.license})\n\n${text.trim()}\n`);
  }
  return parts.join("\n");
}
