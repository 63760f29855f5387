"""A typed client that resumes streams by itself, for asyncio and, as `SyncClient`, for programs without it.

    from collections import defaultdict
    from orchestrator.client import Client, Event, OutputDelta

    async with Client("127.0.0.1:50051") as client:
        created = await client.create("Compare three ways to shard a counter", labels={"team": "infra"})
        async for event in client.stream_events(created.id):
            print(event.sequence, event.WhichOneof("payload"))
        answer = await client.get(created.id)
        print(answer.status.output.final_result)

`stream` also gives text while models write it, each piece with its place in its attempt's text:

        written: defaultdict[tuple[str, int], str] = defaultdict(str)
        async for item in client.stream(created.id):
            match item:
                case OutputDelta(subtask_id=name, attempt=attempt, offset=offset, text=text):
                    written[name, attempt] = written[name, attempt][:offset] + text
                case Event():
                    print(item.sequence, item.WhichOneof("payload"))

`SyncClient` has the same methods without `await`, and its streams are plain iterators.

`Client("host:50051", token="orc_…", tls=Tls(ca="ca.pem"))` is for a service that others reach too.

Every failure is a `ServiceError`. Reading survives a restart of the service; what changes something is sent
once, so give `create` a `request_id` where you want to repeat it safely.
"""

from orchestrator.client.channel import MAX_MESSAGE_BYTES, Tls
from orchestrator.client.errors import ServiceError
from orchestrator.client.rpc import UNARY_TIMEOUT_S, Client
from orchestrator.client.streams import (
    KEEP_TRYING_S,
    SILENCE_TIMEOUT_S,
    Deletion,
    Event,
    EventBatch,
    OnDisconnect,
    OutputDelta,
)
from orchestrator.client.sync import SyncClient

__all__ = [
    "KEEP_TRYING_S",
    "MAX_MESSAGE_BYTES",
    "SILENCE_TIMEOUT_S",
    "UNARY_TIMEOUT_S",
    "Client",
    "Deletion",
    "Event",
    "EventBatch",
    "OnDisconnect",
    "OutputDelta",
    "ServiceError",
    "SyncClient",
    "Tls",
]
