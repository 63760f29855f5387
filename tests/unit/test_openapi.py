"""The OpenAPI description agrees with the protos and the core."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from orchestrator import v1
from orchestrator.core import plan
from orchestrator.v1 import orchestrator_pb2 as pb

ROOT = Path(__file__).parents[2]
BUILT = Path(v1.__file__).parent
SERVICE = pb.DESCRIPTOR.services_by_name["Orchestrator"]


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((BUILT / "openapi.json").read_text())
    return found


def schema(description: dict[str, Any], name: str, *path: str) -> dict[str, Any]:
    """The schema of a field, by the names in the proto."""
    found: dict[str, Any] = description["components"]["schemas"][name]
    for step in path:
        while "$ref" in found:
            found = description["components"]["schemas"][found["$ref"].rpartition("/")[2]]
        found = found["properties"][_json_name(step)]
    return found


def _json_name(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


def test_the_built_description_matches_the_protos(description: dict[str, Any]) -> None:
    describe = runpy.run_path(str(ROOT / "build_hooks/openapi.py"))["describe"]
    again = describe((BUILT / "descriptors.binpb").read_bytes(), description["info"]["version"])
    assert again == description


def test_it_is_openapi_3_1(description: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(description).validate()


def test_every_rpc_is_described_except_those_for_grpc_only(description: dict[str, Any]) -> None:
    operations = [operation for path in description["paths"].values() for operation in path.values()]
    named = {operation["operationId"].rstrip("0123456789") for operation in operations}
    assert named == {method.name for method in SERVICE.methods} - {"StreamEvents", "StreamAllEvents"}
    for operation in operations:
        assert operation["summary"]
        assert all(parameter["description"] for parameter in operation["parameters"])
        assert {"200", "400", "500", "503", "504"} <= operation["responses"].keys()


def test_everything_has_a_description(description: dict[str, Any]) -> None:
    for name, found in description["components"]["schemas"].items():
        assert found["description"], name
        for field, value in found.get("properties", {}).items():
            assert value["description"], (name, field)


def test_limits_are_expressed_in_json_schema(description: dict[str, Any]) -> None:
    whole = "InstanceConfigInput"
    parallel = schema(description, whole, "max_parallel_subtasks")
    assert (parallel["minimum"], parallel["maximum"]) == (1, 64)
    tokens = schema(description, whole, "budget", "max_tokens")["pattern"]
    assert re.fullmatch(tokens, "1")
    assert not re.fullmatch(tokens, "0")
    delay = schema(description, whole, "retry", "initial_delay")["pattern"]
    assert re.fullmatch(delay, "3600s")
    assert not re.fullmatch(delay, "36000s")
    assert not re.fullmatch(delay, "-1s")
    assert schema(description, whole, "instructions")["maxLength"] == 32 * 1024
    assert schema(description, whole, "workers")["maxItems"] == 32
    prompt = schema(description, "CreateInstanceRequest", "prompt")
    assert prompt["maxLength"] == 256 * 1024
    assert not re.search(prompt["pattern"], " \n")
    labels = schema(description, "CreateInstanceRequest", "labels")
    assert labels["maxProperties"] == 64
    assert labels["additionalProperties"]["maxLength"] == 256
    assert labels["propertyNames"]["pattern"] == "^[A-Za-z0-9_./-]{1,63}$"
    subtask = description["components"]["schemas"]["SubtaskInput"]["properties"]
    assert subtask["id"]["pattern"] == subtask["dependsOn"]["items"]["pattern"] == plan.ID.pattern
    for path in description["paths"].values():
        for operation in path.values():
            for parameter in operation["parameters"]:
                if parameter["name"] == "id" and "Events" not in operation["operationId"]:
                    assert parameter["schema"]["pattern"] == plan.ID.pattern


def test_values_are_described_as_envoy_renders_them(description: dict[str, Any]) -> None:
    instance = description["components"]["schemas"]["Instance"]
    assert instance["properties"]["lastSequence"]["type"] == "string"
    assert instance["properties"]["createTime"]["format"] == "date-time"
    always = {
        field.json_name
        for field in pb.GetInstanceResponse.DESCRIPTOR.fields_by_name["instance"].message_type.fields
        if not field.has_presence
    }
    assert set(instance["required"]) == always
    assert {"endTime", "error", "config"}.isdisjoint(instance["required"])


def test_output_only_fields_are_not_part_of_requests(description: dict[str, Any]) -> None:
    subtask = description["components"]["schemas"]["SubtaskInput"]["properties"]
    asked = {name for name, field in subtask.items() if not field.get("readOnly")}
    assert asked == {"id", "title", "instructions", "dependsOn", "worker", "files"}
    file = description["components"]["schemas"]["FileInput"]["properties"]
    assert {name for name, field in file.items() if not field.get("readOnly")} == {"path", "content"}
    assert description["components"]["schemas"]["ReviewPlanRequest"]["required"] == ["decision"]
    decision = schema(description, "ReviewPlanRequest", "decision")
    assert decision["enum"] == ["DECISION_APPROVE", "DECISION_REJECT"]


def test_streams_are_described_by_event(description: dict[str, Any]) -> None:
    for path in ("/{id}/events", "/-/events"):
        operation = description["paths"][path]["get"]
        assert "204" in operation["responses"]
        assert "Last-Event-ID" in [parameter["name"] for parameter in operation["parameters"]]
        event = operation["responses"]["200"]["content"]["text/event-stream"]["schema"]["properties"]
        assert {"instance_created", "instance_terminated", "delta", "end"} <= set(event["event"]["enum"])


def test_files_are_described_by_their_media_types(description: dict[str, Any]) -> None:
    file = description["paths"]["/{id}/files/{path}"]["get"]
    assert [parameter["name"] for parameter in file["parameters"]] == ["id", "path"]
    assert "FILE_NOT_FOUND" in file["responses"]["404"]["description"]
    assert list(file["responses"]["200"]["content"]) == ["text/*", "application/json", "image/svg+xml"]
    archive = description["paths"]["/{id}/archive"]["get"]
    assert list(archive["responses"]["200"]["content"]) == ["application/zip"]


def test_a_failure_is_described_with_the_reasons_of_its_rpc(description: dict[str, Any]) -> None:
    responses = description["paths"]["/"]["post"]["responses"]
    assert "PROMPT_TOO_LARGE" in responses["400"]["description"]
    assert "REQUEST_ID_REUSED" in responses["409"]["description"]
    assert "QUEUE_FULL" in responses["429"]["description"]
    status = description["components"]["schemas"]["Status"]
    assert status["required"] == ["code", "message", "details"]
