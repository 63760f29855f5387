import json

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InvalidArgumentError
from orchestrator.rpc import sse
from orchestrator.v1 import event_pb2, instance_pb2, orchestrator_pb2


def fields_of(frame: bytes) -> list[tuple[str, str]]:
    """Read one frame as the HTML standard says: lines end with CR, LF or both, an empty one dispatches."""
    text = frame.decode()
    assert text.endswith("\n\n")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert lines[-2:] == ["", ""]
    assert "" not in lines[:-2], "an empty line inside would dispatch half an event"
    return [
        (name, value.removeprefix(" ")) for name, _, value in (line.partition(":") for line in lines[:-2])
    ]


def completed(output: str) -> event_pb2.Event:
    return event_pb2.Event(
        instance_id="a",
        sequence=7,
        subtask_completed=event_pb2.SubtaskCompleted(subtask_id="t1", attempt=1, output=output),
    )


def test_an_event_has_its_id_its_name_and_its_json_on_one_line() -> None:
    frame = sse.event_frame(completed("line\nline"), 7)
    assert frame == (
        b"id: 7\nevent: subtask_completed\n"
        b'data: {"instanceId": "a", "sequence": "7", '
        b'"subtaskCompleted": {"subtaskId": "t1", "attempt": 1, "output": "line\\nline"}}\n\n'
    )


def test_the_id_may_be_a_position_while_the_sequence_stays_in_the_data() -> None:
    fields = dict(fields_of(sse.event_frame(completed("x"), 4711)))
    assert fields["id"] == "4711"
    assert json.loads(fields["data"])["sequence"] == "7"


@given(st.text())
def test_no_text_breaks_the_frame_and_the_event_is_parsed_back(output: str) -> None:
    event = completed(output)
    (_, (_, name), (_, data)) = fields_of(sse.event_frame(event, 7))
    assert name == "subtask_completed"
    assert json_format.Parse(data, event_pb2.Event()) == event


@pytest.mark.parametrize("payload", [each.name for each in event_pb2.Event.DESCRIPTOR.oneofs[0].fields])
def test_every_payload_is_named_by_its_oneof_field(payload: str) -> None:
    event = event_pb2.Event(instance_id="a", sequence=1)
    getattr(event, payload).SetInParent()
    assert ("event", payload) in fields_of(sse.event_frame(event, 1))


def test_a_delta_has_no_id_and_all_its_fields() -> None:
    (name, data) = fields_of(sse.delta_frame(orchestrator_pb2.OutputDelta(attempt=1, text="Grüße")))
    assert name == ("event", "delta")
    assert json.loads(data[1]) == {"subtaskId": "", "attempt": 1, "offset": "0", "text": "Grüße"}


def test_the_end_has_no_id_and_holds_state_and_sequence() -> None:
    end = orchestrator_pb2.StreamEnd(state=instance_pb2.STATE_COMPLETE, sequence=12)
    (name, data) = fields_of(sse.end_frame(end))
    assert name == ("event", "end")
    assert json.loads(data[1]) == {"state": "STATE_COMPLETE", "sequence": "12"}


def test_the_opening_is_a_comment() -> None:
    assert [name for name, _ in fields_of(sse.OPENING)] == [""]


def test_a_heartbeat_ends_no_frame() -> None:
    assert sse.heartbeat_line() == b": heartbeat\n"


def test_retry_is_in_milliseconds() -> None:
    assert sse.retry_line(1.5) == b"retry: 1500\n"


@pytest.mark.parametrize(
    ("value", "expected"), [("", None), ("0", 0), ("12", 12), (str(2**63 - 1), 2**63 - 1)]
)
def test_a_last_event_id_is_parsed(value: str, expected: int | None) -> None:
    assert sse.parse_last_event_id(value) == expected


@pytest.mark.parametrize("value", ["-1", "1.5", "abc", " 1", "٣", "1_000", str(2**63), "9" * 100_000])
def test_a_last_event_id_that_was_never_issued_is_rejected(value: str) -> None:
    with pytest.raises(InvalidArgumentError, match="Last-Event-ID") as caught:
        sse.parse_last_event_id(value)
    assert caught.value.reason == "ID_INVALID"
    assert len(str(caught.value)) < 200
