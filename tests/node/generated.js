// A gRPC client made by buf with buf.gen.yaml; its code lies beside a node_modules, as in a project of its own.
//
// node generated.js ADDRESS FOLDER PROMPT: creates an instance, streams its events, reads its result, and asks for what
// is not there; prints one JSON object.

import { pathToFileURL } from "node:url";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

const [address, folder, prompt] = process.argv.slice(2);
const generated = (name) => import(new URL(name, pathToFileURL(`${folder}/`)));
const { Orchestrator } = await generated("orchestrator/v1/orchestrator_pb.js");
const { ErrorInfoSchema } = await generated("google/rpc/error_details_pb.js");

const client = createClient(Orchestrator, createGrpcTransport({ baseUrl: `http://${address}` }));
const { id } = await client.createInstance({ prompt });
const payloads = [];
for await (const { kind } of client.streamEvents({ id })) {
  if (kind.case === "batch") payloads.push(...kind.value.events.map((event) => event.payload.case));
}
const result = Buffer.from((await client.getResult({ id })).data).toString();
const refused = ConnectError.from(await client.getInstance({ id: "nobody" }).catch((error) => error));
const [info] = refused.findDetails(ErrorInfoSchema);

console.log(JSON.stringify({ payloads, result, refused: { code: Code[refused.code], reason: info.reason } }));
