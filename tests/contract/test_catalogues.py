"""A catalogue of the service's workers is recorded once; instances name it."""

from pathlib import Path

import pytest
from support.histories import CONFIG, History
from support.logs import create, creation, key, record

from orchestrator.core import workers
from orchestrator.errors import StorageError
from orchestrator.log.base import EventLog
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.log.states import StateStore
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1.event_pb2 import Event, InstanceCreated, InstanceRestarted, InstanceRetried

CODER = pb.Worker(name="coder", model="a/codex", instructions="Tests first.", temperature=0.2)
WRITER = pb.Worker(name="writer")


def with_catalogue(digest: str) -> pb.InstanceConfig:
    config = pb.InstanceConfig(catalogue=digest)
    config.MergeFrom(CONFIG)
    return config


def history_with(config: pb.InstanceConfig, instance_id: str) -> History:
    history = History(instance_id)
    history.events.clear()
    history.instance = type(history.instance)(id=instance_id)
    return history.then(Event(instance_created=InstanceCreated(prompt="Build it", config=config)))


async def test_a_catalogue_is_returned_as_it_was_stored_on_every_read(log: EventLog) -> None:
    digest, data = workers.encode([CODER, WRITER])
    for _ in range(2):
        await log.store_catalogue(digest, data)
    assert await log.catalogue(digest) == data


async def test_a_missing_catalogue_is_named_in_the_error(log: EventLog) -> None:
    with pytest.raises(StorageError, match="has no catalogue of workers abc, which an event of it names"):
        await log.catalogue("abc")
    await create(log, history_with(with_catalogue("abc"), "a"))
    with pytest.raises(StorageError, match="has no catalogue of workers abc"):
        await StateStore(log).load(key("a"))


async def test_instances_share_the_workers_that_they_name(log: EventLog) -> None:
    states = StateStore(log)
    config = with_catalogue(await states.store_catalogue([CODER, WRITER]))
    for name in ("a", "b"):
        await create(log, history_with(config, name))
    loaded = [(await StateStore(log).load(key("a"))).instance]
    loaded += [(await states.load(key(name))).instance for name in ("a", "b")]
    assert [instance.workers for instance in loaded] == [(CODER, WRITER)] * 3
    assert loaded[1].workers is loaded[2].workers
    assert not any(instance.config.workers for instance in loaded)


async def test_an_event_of_another_writer_may_name_another_catalogue(log: EventLog) -> None:
    states = StateStore(log)
    first, second = [await states.store_catalogue(each) for each in ([CODER], [WRITER])]
    history = history_with(with_catalogue(first), "a")
    await create(log, history)
    assert (await states.load(key("a"))).instance.workers == (CODER,)
    await record(log, history.terminated())
    await record(log, history.then(Event(instance_retried=InstanceRetried(config=with_catalogue(second)))))
    assert (await states.load(key("a"))).instance.workers == (WRITER,)
    assert (await StateStore(log).load(key("a"))).instance.workers == (WRITER,)
    await record(log, history.terminated())
    await record(
        log, history.then(Event(instance_restarted=InstanceRestarted(config=with_catalogue(second))))
    )
    assert (await states.load(key("a"))).instance.workers == (WRITER,)
    await record(log, history.terminated())
    own = pb.InstanceConfig(workers=[CODER])
    await record(log, history.then(Event(instance_restarted=InstanceRestarted(config=own))))
    assert (await states.load(key("a"))).instance.workers == (CODER,)
    await record(log, history.terminated())
    await record(log, history.then(Event(instance_restarted=InstanceRestarted(config=CONFIG))))
    assert (await states.load(key("a"))).instance.workers == ()


async def test_an_event_with_inline_workers_needs_no_catalogue(log: EventLog) -> None:
    config = pb.InstanceConfig(workers=[CODER])
    config.MergeFrom(CONFIG)
    await create(log, history_with(config, "a"))
    assert (await StateStore(log).load(key("a"))).instance.workers == (CODER,)


async def test_a_catalogue_survives_the_process_and_is_not_written_again(tmp_path: Path) -> None:
    log = await SqliteEventLog.open(tmp_path / "log.db")
    digest = await StateStore(log).store_catalogue([CODER])
    await log.create([creation(history_with(with_catalogue(digest), "a"))])
    await log.aclose()
    log = await SqliteEventLog.open(tmp_path / "log.db")
    try:
        states = StateStore(log)
        assert (await states.load(key("a"))).instance.workers == (CODER,)
        log._writer.store_catalogue = _not_writable  # type: ignore[method-assign]
        assert await states.store_catalogue([CODER]) == digest
    finally:
        await log.aclose()


async def _not_writable(*_: object) -> None:
    raise AssertionError("nothing is to be written")
