// Follows an instance with an EventSource, as a page in a browser does, until the service responds with 204.
//
// node events.js URL EVENT…: prints one JSON object for each event, and one for each loss of the connection.

import { EventSource } from "eventsource";

const [url, ...names] = process.argv.slice(2);
const print = (value) => console.log(JSON.stringify(value));

const source = new EventSource(url);
for (const name of names) {
  source.addEventListener(name, ({ type, lastEventId, data }) => print({ type, lastEventId, data: JSON.parse(data) }));
}
// As in a browser, an error has no details: the source reconnects, or is closed for good after a 204.
source.addEventListener("error", () => print({ closed: source.readyState === EventSource.CLOSED }));
