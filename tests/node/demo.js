// A client as one writes it for Cloudflare's orchestrator-workers demo: start a workflow, ask until it has ended.
//
// node demo.js URL PROMPT: prints what it was told, one JSON object.

const [url, prompt] = process.argv.slice(2);
const ended = ["complete", "errored", "terminated"];

const response = await fetch(url, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ prompt }),
});
const { id, details } = await response.json();

const seen = [details.status];
let status = details;
while (!ended.includes(status.status)) {
  await new Promise((resolve) => setTimeout(resolve, 50));
  ({ status } = await (await fetch(new URL(id, url))).json());
  if (seen.at(-1) !== status.status) seen.push(status.status);
}
console.log(JSON.stringify({ id, seen, output: status.output }));
