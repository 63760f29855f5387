"""How long the event loop is blocked by what clients, models and endpoints send at their worst.

    python benchmarks/loop.py [--kilobytes 1024] [--instances 1000] [--events 10000]

For each piece of work: the longest time that nothing else has its turn, in milliseconds, and all of it. Texts
of models have so many kilobytes, and come in pieces of 16 characters and in the largest that a provider hands
on; bodies of endpoints have ten times as many. Work beside the loop keeps it too while the interpreter
is in one call. Work in one go is measured in CPU time, all else as time passes: let the machine be idle.
"""

import argparse
import asyncio
import gc
import gzip
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast
from unittest.mock import AsyncMock

from retention import CONFIG, fill

from orchestrator.auth.caller import ANYONE
from orchestrator.core import config, decider, plan_text, references
from orchestrator.core.create import NewInstance, new_instance
from orchestrator.core.events import failed, started
from orchestrator.core.files import File, find_files
from orchestrator.core.identity import InstanceKey
from orchestrator.core.instance import (
    COMPLETE,
    COMPLETED,
    INTERRUPTED,
    PLANNING,
    Failure,
    Instance,
    Subtask,
    Usage,
    Work,
)
from orchestrator.core.plan import PlanError
from orchestrator.core.plan_text import PlanReader
from orchestrator.core.prompts import FULL, Message, Prompt
from orchestrator.core.references import Expander, References
from orchestrator.core.summary import summarize
from orchestrator.engine.base import Engine
from orchestrator.errors import ModelError, RequestError
from orchestrator.log.base import Append, Creation
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.log.states import StateStore
from orchestrator.models.base import ModelRequest
from orchestrator.models.http.chat_completions import ChatCompletions
from orchestrator.models.http.client import HttpResponse, StreamingResponse
from orchestrator.models.http.compression import Decompressor
from orchestrator.models.http.endpoint import Call
from orchestrator.models.http.thoughts import LARGEST_PIECE, AnswerText
from orchestrator.offload import offload
from orchestrator.rpc.requests import CALLER
from orchestrator.rpc.service import OrchestratorService
from orchestrator.v1 import instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb

PIECES: Final = (16, LARGEST_PIECE)
CHUNK_BYTES: Final = 16 * 1024
"""How much the HTTP library hands on at once."""
MAX_SUBTASKS: Final = 64
REQUEST: Final = ModelRequest("m", Prompt("work", (Message("user", ""),)), 8192, 600.0)


def print_row(name: str, longest_s: float, total_s: float) -> None:
    """Print the longest time in one go and all of it."""
    print(f"{name:60}{longest_s * 1e3:10.2f}{total_s * 1e3:12.1f}")


def repeat(begin: str, part: str, characters: int, end: str = "") -> str:
    """Return a text of so many characters that repeats a part."""
    return begin + part * ((characters - len(begin)) // len(part)) + end


def streamed_plans(characters: int) -> Mapping[str, str]:
    """Return texts that are hard to read as plans while they are written."""
    return {
        "braces in a string": repeat('{"summary": "", "subtasks": [{"id": "', "}", characters),
        "braces in the summary": repeat('{"summary": "', "}", characters),
        "keys of lists": repeat('{"summary": "', '"subtasks": [', characters),
        "values before the list": repeat('{"a": [', "[],", characters),
        "dependencies": repeat('{"summary": "", "subtasks": [{"depends_on": [', '"",', characters),
    }


def whole_plans(characters: int) -> Mapping[str, str]:
    """Return texts that are hard to read as plans once they are whole."""
    begin = '{"summary": "s", "subtasks": ['
    entry = json.dumps({"id": "a", "title": "b"})
    return {
        "without its end": repeat(begin, f"{entry},", characters, "]"),
        "of empty lists": repeat(begin, "[],", characters, "1]}"),
        "of keys": '{"a": 1' + "".join(f', "{number}": 1' for number in range(characters // 13)) + "}",
        "with faults": repeat("{'summary': 's', 'subtasks': [", "{'a': 'b'},", characters, "]}"),
        "of open brackets": repeat("", "[", characters),
        "of numbers in open brackets": repeat("[" * 300, "1, ", characters, "x"),
        "of quotation marks": repeat('{"a" x ', '" \\', characters),
        "of comments": repeat('{"a":"x ', '"/*', characters),
        "of spaces after a quotation mark": repeat('"', " ", characters),
        "in a string": json.dumps(repeat('{"a": "', "x", characters, '"}')),
        "of dependencies": repeat(begin + '{"id": "a", "needs": "', "a,", characters, '"}]}'),
    }


def answers(characters: int) -> Mapping[str, str]:
    """Return answers that are hard to tell from thoughts."""
    return {
        "closing tags in code": repeat("```\n", "</think>\n", characters),
        "closing tags in sentences": repeat("", "a </think> b ", characters),
        "closing tags in quotes": repeat("", "`</think>` ", characters),
        "closing tags in thoughts": repeat("<think>", "`</think>` ", characters),
        "closing tags in JSON": repeat('{"a": "', "</think>", characters),
        "a closing tag behind broken JSON": repeat('["a"', ", {}", characters, "</think> x"),
        "a closing tag behind fences": repeat("", "```\n", characters, "</think> x"),
        "a closing tag behind é": repeat("", "é", characters, "</think> x"),
        "beginnings of tags": repeat("", "<", characters),
    }


def syntheses(characters: int) -> Mapping[str, str]:
    """Return syntheses that are hard to find references in."""
    tag = references.tag("t1:a.py")
    return {
        "of references": repeat("", f"{tag} ", characters),
        "of references in sentences": repeat("", f"See {tag} too.\n", characters),
        "of beginnings of references": repeat("", "<keep-file", characters),
        "of lists in one line": repeat("", "- ", characters),
        "of fences": repeat("", "```\n", characters),
        "of short lines": repeat("", "`\n", characters),
    }


def markdown(characters: int) -> Mapping[str, str]:
    """Return texts that are hard to find files in."""
    return {
        "in fences": repeat("", "~~~a\n~~~~\n", characters),
        "in quotes in quotes": repeat("", "> > a.py\n> > ```\n> > x\n> > ```\n", characters),
        "in one block": repeat("a.py\n```\n", "x\n", characters),
        "below deep lists": repeat("- " * 40 + "x\n", "\n", characters),
    }


def measure(name: str, work: Callable[[], object]) -> None:
    """Measure what is done in one go."""
    begin_s = time.thread_time()
    with suppress(RequestError):
        work()
    print_row(name, *[time.thread_time() - begin_s] * 2)


def measure_pieces(name: str, text: str, reader: Callable[[], Callable[[str], object]]) -> None:
    """Measure what takes a text in pieces of each size; each time with another reader."""
    for size in PIECES:
        add = reader()
        times = []
        for start in range(0, len(text), size):
            begin_s = time.thread_time()
            add(text[start : start + size])
            times.append(time.thread_time() - begin_s)
        print_row(f"{name}, pieces of {size:,}", max(times), sum(times))


def plan_reader() -> Callable[[str], object]:
    """Return what takes the next piece of a plan."""
    reader = PlanReader(MAX_SUBTASKS)

    def add(piece: str) -> None:
        reader.add(piece)
        reader.read()

    return add


async def measure_stall(name: str, work: Coroutine[Any, Any, object]) -> None:
    """Measure the longest time that nothing else had its turn; not what earlier measurements left behind."""
    gc.collect()
    turns = [time.perf_counter()]

    async def take_turns() -> None:
        while True:
            await asyncio.sleep(0)
            turns.append(time.perf_counter())

    watching = asyncio.create_task(take_turns())
    await asyncio.sleep(0)
    with suppress(ModelError, PlanError):
        await work
    await asyncio.sleep(0)
    watching.cancel()
    print_row(name, max(b - a for a, b in pairwise(turns)), turns[-1] - turns[0])


async def measure_plans_and_answers(characters: int) -> None:
    """Measure what is done with the texts of models."""
    for name, text in streamed_plans(characters).items():
        measure_pieces(f"a streamed plan, {name}", text, plan_reader)
    for name, text in whole_plans(min(characters, 512 * 1024 - 8)).items():
        await measure_stall(f"a plan {name}", offload(partial(plan_text.parse, text, MAX_SUBTASKS)))
    for name, text in whole_plans(2000).items():
        measure(f"a short plan {name}", partial(parse_here, text))
    files = {"t1:a.py": File("a.py", "x\n", "python")}
    for name, text in syntheses(characters).items():
        measure_pieces(f"a synthesis {name}", text, lambda: Expander(References(files, files)).feed)
    for name, text in markdown(characters).items():
        await measure_stall(f"files {name}", offload(partial(find_files, text)))
    for name, text in markdown(16 * 1024).items():
        measure(f"files of a short result {name}", partial(find_files, text))
    for name, text in answers(characters).items():
        measure_pieces(f"an answer, {name}", text, lambda: AnswerText(is_json=True).add)


def parse_here(text: str) -> None:
    """Parse a plan on the loop, as the engine does with a short one."""
    with suppress(PlanError):
        plan_text.parse(text, MAX_SUBTASKS)


class Streamed(StreamingResponse):
    """A stream whose chunks are there already."""

    def __init__(self, body: bytes) -> None:
        self.status, self.headers = 200, {}
        self._chunks = [body[start : start + CHUNK_BYTES] for start in range(0, len(body), CHUNK_BYTES)]

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield them."""
        for chunk in self._chunks:
            yield chunk


def completion(text: str) -> bytes:
    """Return the body of an answer."""
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()


async def measure_endpoints(size: int) -> None:
    """Measure what is done with what endpoints send."""
    provider = ChatCompletions("x", "http://127.0.0.1:1/v1")
    bodies = {
        "of text": completion(repeat("", 'A "long" tale.\n', size)),
        "of é": completion(repeat("", "é", size // 6)),
        "of beginnings of tags": completion(repeat("", "<", size)),
        "of empty objects": b"[" + b"{}," * (size // 3) + b"{}]",
        "of empty lists": b"[" + b"[]," * (size // 3) + b"[]]",
        "of keys": b"{" + b",".join(b'"%d":1' % number for number in range(size // 12)) + b"}",
        "of content in parts": completion("").replace(b'""', b'["a"' + b',"a"' * 40_000 + b"]"),
        "that is no JSON": b'{"' + b"\xff" * size,
    }
    for name, body in bodies.items():
        call = Call(REQUEST, None)
        await measure_stall(f"a body {name}", provider._reply_from_body(HttpResponse(200, {}, body), call))  # noqa: SLF001  the step itself
    event = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    streams = {
        "of events": event * (size // len(event)),
        "of one event": b"data: " + bodies["of text"] + b"\n\n",
        "of empty lines": b"\n" * size,
        "of comments": b":\n" * (size // 2),
        "of the smallest events": b"data:{}\n\n" * (size // 9),
        "of lines of one event": b'data: {"a": [{}\n' + b"data: {}\n" * (size // 9),
    }
    for name, body in streams.items():
        call = Call(REQUEST, lambda *_, **__: None)
        await measure_stall(f"a stream {name}", provider._reply_from_stream(Streamed(body), call))  # noqa: SLF001  the step itself
    await provider.aclose()
    decompressor = Decompressor("gzip")
    pieces = decompressor.feed(gzip.compress(bytes(size))[:CHUNK_BYTES])
    times = [time.thread_time(), *(time.thread_time() for _ in pieces)]
    print_row("a compressed chunk", max(b - a for a, b in pairwise(times)), times[-1] - times[0])


def finished_instance(outputs: int, characters: int) -> Instance:
    """Return an instance with so many outputs of so many characters, and a result like them."""
    text = repeat("", "output ", characters)
    subtasks = {
        name: Subtask(name, name, "Do it.", work=Work(state=COMPLETED, attempt=1), output=text)
        for name in (f"t{number}" for number in range(outputs))
    }
    return Instance(
        id="a", state=COMPLETE, config=CONFIG, is_planned=True, subtasks=subtasks, final_result=text
    )


def measure_requests(characters: int) -> None:
    """Measure what is done with what clients send, and the prompts that are made of outputs."""
    closing = "".join(f"</prompt-{number}>" for number in range(2, min(characters, 256 * 1024) // 15))
    instance, _ = NewInstance(id="a", prompt=f"</prompt>{closing}", config=CONFIG).begin(0)
    measure("a prompt of closing tags", partial(FULL.plan, instance))
    done = finished_instance(MAX_SUBTASKS, characters)
    measure("a synthesis of 64 outputs", partial(FULL.synthesize, done))
    wide = instance_pb2.InstanceConfig(max_input_characters=10_000_000)
    measure("a synthesis of ten million characters", partial(FULL.synthesize, replace(done, config=wide)))
    plan = [
        instance_pb2.Subtask(id=f"t{number}", instructions="i" * min(characters, 65_536))
        for number in range(MAX_SUBTASKS)
    ]
    for name, subtasks in (("of 64 long subtasks", plan), ("of too many subtasks", plan[:1] * 100_000)):
        requested = instance_pb2.InstanceConfig(subtasks=subtasks, max_subtasks=MAX_SUBTASKS)
        measure(f"a client's plan {name}", partial(config.resolve, requested, CONFIG))


async def create(log: SqliteEventLog, instance_id: str) -> Creation:
    """Record a new instance."""
    instance, events = NewInstance(id=instance_id, prompt="Build it.", config=CONFIG).begin(time.time())
    creation = Creation(InstanceKey("", instance_id), events, instance)
    await log.create([creation])
    return creation


async def append_attempts(log: SqliteEventLog, instance_id: str, events: int) -> None:
    """Record so many events of an instance: attempts that were interrupted."""
    instance = (await create(log, instance_id)).instance
    ref = (await log.head(InstanceKey("", instance_id))).ref
    while instance.last_sequence < events:
        attempt, last_sequence = instance.planning.attempt + 1, instance.last_sequence
        cause = Failure(INTERRUPTED, "the service stopped during the call")
        new = [
            started(PLANNING, attempt, "m"),
            failed(PLANNING, attempt, "m", cause, Usage(model_calls=1), time.time()),
        ]
        instance = decider.apply(instance, new, time.time())
        append = log.append(Append(ref, last_sequence, new, summarize(instance)))
        if instance.last_sequence >= events or attempt % 100 == 0:
            await append


async def measure_reads(path: Path, characters: int, instances: int, events: int) -> None:
    """Measure what is read of the log: long histories, large instances, and lists of many."""
    log = await SqliteEventLog.open(path)
    await append_attempts(log, "long", events)
    key = InstanceKey("", "long")
    await measure_stall(f"{events:,} events of an instance, loaded", StateStore(log).load(key))
    states = StateStore(log)
    engine = AsyncMock(states=states)
    engine.waiting_reason = lambda _: ""
    service = OrchestratorService(cast("Engine", engine), log, CONFIG)
    large = finished_instance(MAX_SUBTASKS, 10 * characters // (MAX_SUBTASKS + 1))
    states.keep((await log.head(key)).ref, replace(large, id="long", last_sequence=10**6))
    for view in (pb.VIEW_BASIC, pb.VIEW_FULL):
        get = pb.GetInstanceRequest(id="long", view=view)
        name = f"{pb.View.Name(view)} of an instance with {10 * characters >> 10:,} KiB"
        await measure_stall(name, service.GetInstance(get, AsyncMock()))
    request = pb.ListInstancesRequest(page_size=1000)
    await measure_stall("a page of finished instances", service.ListInstances(request, AsyncMock()))
    for number in range(instances):
        await create(log, f"new-{number}")
    for state in ("not loaded", "loaded"):
        name = f"a page of queued instances, {state}"
        await measure_stall(name, service.ListInstances(request, AsyncMock()))
    await log.aclose()


async def measure_files(path: Path, characters: int) -> None:
    """Measure what is done with the most files that a request may bring, from the request to the prompts."""
    log = await SqliteEventLog.open(path)
    states = StateStore(log)
    engine = AsyncMock(states=states)
    engine.waiting_reason = lambda _: ""
    service = OrchestratorService(cast("Engine", engine), log, CONFIG)
    for name, sign in (("ASCII", "x"), ("two bytes each", "é"), ("three bytes each", "語")):
        content = sign * (min(characters, 1024 * 1024) // len(sign.encode()))
        files = [instance_pb2.File(path=f"f{number}.txt", content=content) for number in range(8)]
        request = pb.CreateInstanceRequest(prompt="f1.txt", id=f"files-{ord(sign)}", files=files)
        data = request.SerializeToString()
        measure(f"8 files of {name}, parsed", partial(pb.CreateInstanceRequest.FromString, data))
        validate = partial(new_instance, request, base=CONFIG, fallback_id="")
        await measure_stall(f"8 files of {name}, validated", offload(validate))
        await measure_stall(f"8 files of {name}, recorded", offload(partial(validate().begin, 0)))
        instance, events = validate().begin(0)
        key = InstanceKey("", request.id)
        creation = Creation(key, events, instance)
        await measure_stall(f"8 files of {name}, appended", created(log, creation))
        await measure_stall(f"8 files of {name}, loaded", states.load(key))
        get = pb.GetInstanceRequest(id=request.id, view=pb.VIEW_FULL)
        await measure_stall(f"8 files of {name}, shown", service.GetInstance(get, AsyncMock()))
        wide = replace(instance, config=instance_pb2.InstanceConfig(max_input_characters=10_000_000))
        await measure_stall(f"8 files of {name}, in a prompt", offload(partial(FULL.plan, wide)))
    await log.aclose()


async def created(log: SqliteEventLog, creation: Creation) -> None:
    await log.create([creation])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kilobytes", type=int, default=1024)
    parser.add_argument("--instances", type=int, default=1000)
    parser.add_argument("--events", type=int, default=10_000)
    CALLER.set(ANYONE)
    options = parser.parse_args(arguments)
    characters = options.kilobytes * 1024
    gc.set_threshold(20_000, 10, 100)  # as the service does
    print(f"{'the loop is blocked, ms':60}{'longest':>10}{'in all':>12}")
    measure_requests(characters)
    asyncio.run(measure_plans_and_answers(characters))
    asyncio.run(measure_endpoints(10 * characters))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log.db")
        asyncio.run(fill(path, options.instances))
        asyncio.run(measure_reads(path, characters, options.instances, options.events))
        asyncio.run(measure_files(path, characters))


if __name__ == "__main__":
    main()
