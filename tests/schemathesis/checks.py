"""What schemathesis checks here beyond its own: that the description and the service agree on what is right.

A schema states less than the service checks (a plan without cycles, a state that allows the action), and
protobuf's JSON reads more than a schema describes (`null` as unset, numbers in strings; Envoy drops the
fields that it does not know). Each check lets exactly that pass.
"""

import re
from typing import Any

import schemathesis
from google.protobuf import json_format, message_factory
from jsonschema import Draft202012Validator
from schemathesis.core.failures import Failure
from schemathesis.specs.openapi import checks

from orchestrator.v1 import orchestrator_pb2

LONGEST_TEXT = 1000
SERVICE = orchestrator_pb2.DESCRIPTOR.services_by_name["Orchestrator"]

BEYOND_A_SCHEMA = {
    "STATE_FORBIDS",
    "SEQUENCE_OUT_OF_RANGE",
    "PAGE_TOKEN_INVALID",
    "PLAN_INVALID",  # unique ids, known dependencies and files, no cycles
    "FILES_INVALID",  # unique paths, no `..`, no path that is a file and a folder
}
FIELDS_BEYOND_A_SCHEMA = {
    "request_id": "printable characters only",
    "labels[": "printable characters only",
    "config.retry.": "the range of a duration",
    "config.budget.max_duration": "the range of a duration",
    "config.subtasks": "a plan cannot be changed once it is made",
    "config.workers": "names are printable and unique",
    "update_mask": "names fields of a configuration",
    "feedback": "goes with DECISION_REJECT only",
}


@schemathesis.hook
def before_load_schema(_: schemathesis.HookContext, description: dict[str, Any]) -> None:
    """Take out what would keep most requests from being made, or from getting past the first check."""
    schemas = description["components"]["schemas"]
    # No model's price is known: with a limit of the cost every request is refused.
    del schemas["BudgetInput"]["properties"]["maxCostUsd"]
    # Of the models only these are there.
    for name in ("bigModel", "smallModel"):
        schemas["InstanceConfigInput"]["properties"][name] = {"enum": ["openai/any"]}
    schemas["WorkerInput"]["properties"]["model"] = {"enum": ["openai/any", ""]}
    # With a text of that length to make up, the generator gives up on the whole body.
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            if field.get("maxLength", 0) > LONGEST_TEXT:
                del field["maxLength"]


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case, __: dict[str, Any]) -> None:
    """Wait for no time that is worth the name: instances that wait for a review have no end."""
    if case.operation.definition.raw["operationId"] == "WaitInstance":
        query = dict(case.query or {})
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?s", str(query.get("timeout", "30s"))):
            case.query = {**query, "timeout": "0.1s"}


@schemathesis.check
def what_fits_is_accepted(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """A request that fits the description is refused only for what no schema can say."""
    try:
        checks.positive_data_acceptance(context, response, case)
    except checks.RejectedPositiveData:
        error = response.json()
        details = {detail["@type"].rpartition(".")[2]: detail for detail in error["details"]}
        reason = details.get("ErrorInfo", {}).get("reason")
        fields = [fault["field"] for fault in details.get("BadRequest", {}).get("fieldViolations", ())]
        if reason in BEYOND_A_SCHEMA or any(map(_is_beyond_a_schema, fields)):
            return
        raise


@schemathesis.check
def what_does_not_fit_is_refused(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """A request that does not fit the description is refused, unless protobuf reads it as one that does."""
    try:
        checks.negative_data_rejection(context, response, case)
    except checks.AcceptedNegativeData as accepted:
        try:
            faults = _faults(case)
        except json_format.ParseError as error:
            # Envoy also takes a duration that is taken apart, as in {"seconds": 1}.
            faults = [] if "Duration JSON value not a string: {" in str(error) else [str(error)]
        if faults:
            raise Failure(
                operation=case.operation.label,
                title="Schema-violating request accepted",
                message=f"{accepted.message}\nAs protobuf reads it: {'; '.join(faults)}",
            ) from None


def _is_beyond_a_schema(field: str) -> bool:
    within = re.sub(r"^requests\[\d+\]\.", "", field)
    return any(within.startswith(known) for known in FIELDS_BEYOND_A_SCHEMA)


def _as_envoy_reads(value: Any) -> Any:
    """Leave out what is null, also in maps and lists; a list in a list is its elements to Envoy."""
    match value:
        case dict():
            return {name: _as_envoy_reads(each) for name, each in value.items() if each is not None}
        case list():
            found = [_as_envoy_reads(each) for each in value if each is not None]
            return [part for each in found for part in (each if isinstance(each, list) else [each])]
    return value


def _faults(case: schemathesis.Case) -> list[str]:
    """What is wrong with the request in the one form that protobuf itself would write."""
    operation = case.operation.definition.raw
    method = SERVICE.methods_by_name[operation["operationId"].rstrip("0123456789")]
    body = _as_envoy_reads(case.body) if isinstance(case.body, dict) else {}
    request = json_format.ParseDict(
        {**(case.path_parameters or {}), **(case.query or {}), **body},
        message_factory.GetMessageClass(method.input_type)(),
        ignore_unknown_fields=True,
    )
    canonical = json_format.MessageToDict(request)
    components = case.operation.schema.raw_schema["components"]
    faults = []
    parameters = {each["name"]: each["schema"] for each in operation["parameters"] if each["in"] != "header"}
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    properties = {name: value for name, value in canonical.items() if name not in parameters}
    wholes: list[tuple[dict[str, Any], Any]] = [
        (schema, canonical[name]) for name, schema in parameters.items() if name in canonical
    ]
    if content:
        wholes.append((content["schema"], properties))
    for schema, value in wholes:
        validator = Draft202012Validator({**schema, "components": components})
        faults += [error.message for error in validator.iter_errors(value)]
    return faults
