// A gRPC client built from the .proto files at run time.
//
// node grpc.js ADDRESS PROTOS PROMPT: creates an instance, streams its events, gets it, and gets a missing
// one; prints one JSON object.

import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [address, protos, prompt] = process.argv.slice(2);
const definition = loadSync(
  ["orchestrator/v1/orchestrator.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"],
  { includeDirs: [protos], keepCase: true, longs: String, enums: String, oneofs: true },
);
const { Orchestrator } = grpc.loadPackageDefinition(definition).orchestrator.v1;
const client = new Orchestrator(address, grpc.credentials.createInsecure());

const call = (method, request) =>
  new Promise((resolve, reject) =>
    client[method](request, { deadline: Date.now() + 30_000 }, (error, answer) => (error ? reject(error) : resolve(answer))),
  );

const { id } = await call("CreateInstance", { prompt });
const kinds = [];
const sequences = [];
let end;
for await (const message of client.StreamEvents({ id })) {
  kinds.push(message.kind);
  for (const event of message.batch?.events ?? []) sequences.push(event.sequence);
  end ??= message.end;
}
const { status } = await call("GetInstance", { id });

const error = await call("GetInstance", { id: "nobody" }).catch((rejection) => rejection);
const [bytes] = error.metadata.get("grpc-status-details-bin");
const details = definition["google.rpc.Status"].deserialize(bytes).details;
const info = details.find((detail) => detail.type_url.endsWith("ErrorInfo"));
const { reason, domain, metadata } = definition["google.rpc.ErrorInfo"].deserialize(info.value);

console.log(
  JSON.stringify({ kinds, sequences, end, status, refused: { code: error.code, reason, domain, metadata } }),
);
client.close();
