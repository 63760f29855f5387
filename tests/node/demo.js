// A client as it would be written for Cloudflare's orchestrator-workers demo: start a workflow, poll until it ends.
//
// node demo.js URL PROMPT: prints one JSON object: the id, the statuses in their order, and the output.

const [url, prompt] = process.argv.slice(2);
const terminalStatuses = ["complete", "errored", "terminated"];

const response = await fetch(url, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ prompt }),
});
const { id, details } = await response.json();

const statuses = [details.status];
let status = details;
while (!terminalStatuses.includes(status.status)) {
  await new Promise((resolve) => setTimeout(resolve, 50));
  ({ status } = await (await fetch(new URL(id, url))).json());
  if (statuses.at(-1) !== status.status) statuses.push(status.status);
}
console.log(JSON.stringify({ id, seen: statuses, output: status.output }));
