// Follows an instance with an EventSource, as a page in a browser does, until the service says that there is no more.
//
// node events.js URL EVENT…: prints one JSON object for each event, and one for each loss of the connection.

import { EventSource } from "eventsource";

const [url, ...names] = process.argv.slice(2);
const say = (what) => console.log(JSON.stringify(what));

const source = new EventSource(url);
for (const name of names) {
  source.addEventListener(name, ({ type, lastEventId, data }) => say({ type, lastEventId, data: JSON.parse(data) }));
}
// A browser says no more than this either: it tries again, or it has given up for good, as a 204 tells it to.
source.addEventListener("error", () => say({ closed: source.readyState === EventSource.CLOSED }));
