"""The catalogue of workers: its limits, and how it is read from the settings."""

import math

import pytest
from support.histories import CONFIG, resolved

from orchestrator.core import config, workers
from orchestrator.errors import InvalidArgumentError, SettingsError
from orchestrator.v1 import instance_pb2 as pb

CODER = pb.Worker(
    name="coder",
    use="writes code",
    model="openai/codex",
    instructions="Tests first.",
    temperature=0.0,
    top_p=0.9,
)
TABLE = {
    "name": "coder",
    "use": "writes code",
    "model": "openai/codex",
    "instructions": "Tests first.",
    "temperature": 0,
    "top_p": 0.9,
}


def test_a_table_of_the_settings_becomes_a_worker() -> None:
    assert workers.read([TABLE]) == [CODER]
    assert workers.read([{"name": "any"}]) == [pb.Worker(name="any")]
    assert workers.read([]) == []


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("coder", "workers[1] is 'coder': it must be a table, as in [[workers]]"),
        ({"use": "x"}, "workers[1].name is '': it must be a name in one line, as in coder"),
        ({"name": "any", "sampling": 1}, "workers[1] has an unknown 'sampling'; known are name, use, model"),
        ({"name": "any", "model": 5}, "workers[1].model is 5: it must be a text"),
        ({"name": "any", "temperature": "hot"}, "workers[1].temperature is 'hot': it must be a number"),
        ({"name": "any", "temperature": True}, "workers[1].temperature is True: it must be a number"),
        ({"name": "any", "temperature": math.nan}, "workers[1].temperature is nan: it must be 0 to 2"),
        ({"name": "any", "top_p": -0.5}, "workers[1].top_p is -0.5: it must be 0 to 1"),
        ({"name": "coder"}, "workers[1].name is 'coder', and so is another's: names must be unique"),
    ],
)
def test_an_invalid_table_is_rejected(table: object, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        workers.read([TABLE, table])
    place, verb, fault = words.partition(" has " if " has " in words else " is ")
    assert str(caught.value).startswith(f"{place} in orchestrator.toml{verb}{fault}")


@pytest.mark.parametrize(
    ("field", "catalogue"),
    [
        ("workers", [pb.Worker(name=f"w{number}") for number in range(33)]),
        ("workers[0].name", [pb.Worker(use="nameless")]),
        ("workers[0].name", [pb.Worker(name=" coder")]),
        ("workers[0].name", [pb.Worker(name="coder\nwriter: everything")]),
        ("workers[0].name", [pb.Worker(name="c" * 101)]),
        ("workers[1].name", [pb.Worker(name="coder"), pb.Worker(name="coder")]),
        ("workers[0].use", [pb.Worker(name="coder", use="u" * 1001)]),
        ("workers[0].model", [pb.Worker(name="coder", model="a/" + "b" * 199)]),
        ("workers[0].instructions", [pb.Worker(name="coder", instructions="é" * 4097)]),
        ("workers[0].temperature", [pb.Worker(name="coder", temperature=2.1)]),
        ("workers[0].top_p", [pb.Worker(name="coder", top_p=1.1)]),
    ],
)
def test_a_catalogue_beyond_a_limit_is_rejected_with_the_path_of_the_field(
    field: str, catalogue: list[pb.Worker]
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        resolved(workers=catalogue)
    assert (caught.value.reason, caught.value.field) == ("CONFIG_INVALID", f"config.{field}")
    assert str(caught.value).startswith(f"config.{field} ")


def test_a_catalogue_at_every_limit_is_accepted() -> None:
    catalogue = [
        pb.Worker(
            name=f"{number:100d}".replace(" ", "w"),
            use="u" * 1000,
            model="a/" + "b" * 198,
            instructions="é" * 4096,
            temperature=2,
            top_p=1,
        )
        for number in range(32)
    ]
    assert list(resolved(workers=catalogue).workers) == catalogue


def test_a_catalogue_of_the_client_replaces_the_services() -> None:
    base = config.default("a/big", "a/small", [CODER, pb.Worker(name="writer")])
    assert [worker.name for worker in config.resolve(pb.InstanceConfig(), base).workers] == [
        "coder",
        "writer",
    ]
    own = pb.InstanceConfig(workers=[pb.Worker(name="coder", model="a/mine")])
    assert list(config.resolve(own, base).workers) == list(own.workers)


def test_without_a_catalogue_a_configuration_has_no_extra_bytes() -> None:
    assert not any(field.name == "workers" for field, _ in CONFIG.ListFields())


def test_all_models_are_listed_with_their_fields() -> None:
    catalogue = [pb.Worker(name="writer"), CODER]
    assert config.models(config.default("a/big", "a/small"), catalogue) == {
        "big_model": "a/big",
        "small_model": "a/small",
        "workers[1].model": "openai/codex",
    }


def test_a_catalogue_is_identified_by_its_content() -> None:
    digest, data = workers.encode([CODER, pb.Worker(name="writer")])
    assert workers.decode(data) == (CODER, pb.Worker(name="writer"))
    assert workers.encode([CODER, pb.Worker(name="writer")]) == (digest, data)
    assert workers.encode([pb.Worker(name="writer"), CODER])[0] != digest
