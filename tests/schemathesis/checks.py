"""What schemathesis checks here beyond its own: that the description and the service agree on what is right.

A schema says less than the service knows (a plan without cycles, a state that allows the action), and
protobuf's JSON reads more than a schema describes (`null` as unset, numbers in strings; Envoy drops the
fields that it does not know). Each check lets exactly that pass.
"""

from typing import Any

import schemathesis
from google.protobuf import json_format, message_factory
from jsonschema import Draft202012Validator
from schemathesis.core.failures import Failure
from schemathesis.specs.openapi import checks

from orchestrator.v1 import orchestrator_pb2

MODELS = ("bigModel", "smallModel")
SERVICE = orchestrator_pb2.DESCRIPTOR.services_by_name["Orchestrator"]

BEYOND_A_SCHEMA = {
    "STATE_FORBIDS",
    "SEQUENCE_OUT_OF_RANGE",
    "PAGE_TOKEN_INVALID",
    "PLAN_INVALID",  # unique ids, known dependencies, no cycles
}
FIELDS_BEYOND_A_SCHEMA = {
    "request_id": "printable characters only",
    "labels[": "printable characters only",
    "config.retry.": "the range of a duration",
    "config.budget.max_duration": "the range of a duration",
    "config.budget.max_cost_usd": "no model's price is known",
    "config.big_model": "the providers that there are",
    "config.small_model": "the providers that there are",
    "config.subtasks": "a plan cannot be changed once it is made",
    "feedback": "goes with DECISION_REJECT only",
}


@schemathesis.hook
def map_body(_: schemathesis.HookContext, body: object) -> object:
    """Ask for models that there are, so that more requests get as far as the engine."""
    match body:
        case {"config": {**config}}:
            asked = [name for name in MODELS if isinstance(config.get(name), str)]
            return {**body, "config": {**config, **dict.fromkeys(asked, "openai/any")}}
    return body


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
            faults = [str(error)]
        if faults:
            raise Failure(
                operation=case.operation.label,
                title="Schema-violating request accepted",
                message=f"{accepted.message}\nAs protobuf reads it: {'; '.join(faults)}",
            ) from None


def _is_beyond_a_schema(field: str) -> bool:
    return any(field.startswith(known) for known in FIELDS_BEYOND_A_SCHEMA)


def _faults(case: schemathesis.Case) -> list[str]:
    """What is wrong with the request in the one form that protobuf itself would write."""
    operation = case.operation.definition.raw
    method = SERVICE.methods_by_name[operation["operationId"].rstrip("0123456789")]
    body = case.body if isinstance(case.body, dict) else {}
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
