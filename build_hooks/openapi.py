"""Makes the OpenAPI 3.1 description of the REST API from the descriptor set of protos/, as the build does.

Paths come from `google.api.http`, what is required from `google.api.field_behavior`, limits from
`orchestrator.v1.limits`, descriptions from the comments, and an RPC's errors from the `CODE: REASON` in its
comment. Values look as Envoy's transcoder renders them: int64 as a string, a Duration as "1.5s".
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

Json = dict[str, Any]

SERVICE: Final = "orchestrator.v1.Orchestrator"
BODY: Final = "google.api.HttpBody"
"""What an RPC gives whose answer is no JSON: a stream is of Server-Sent Events."""
MEDIA_TYPES: Final = {
    "GetResult": ("text/markdown; charset=utf-8",),
    "GetFile": ("text/*", "application/json", "image/svg+xml"),
    "GetArchive": ("application/zip",),
    "GetMetrics": ("text/plain; version=0.0.4; charset=utf-8",),
}
"""What the body of the others is."""
EVENT: Final = "orchestrator.v1.Event"
"""What the data of most of them is; without the fields that have their default."""
OTHER_EVENTS: Final = {"delta": "orchestrator.v1.OutputDelta", "end": "orchestrator.v1.StreamEnd"}
"""What the data of the others is, by the name of the event."""
ERROR_DETAILS: Final = ("google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo")
VERBS: Final = ("get", "put", "post", "delete", "patch")

# What Envoy makes of a gRPC code.
STATUSES: Final = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
}
# What Envoy or the service may answer to any request; the second value says whether only to one that writes.
ALWAYS: Final = {
    400: ("The request is malformed: its path, a query parameter, a header or its body.", False),
    403: ("A web page of an origin that is not allowed asks for it.", True),
    408: ("The request came in too slowly.", True),
    413: ("The body is over 64 MiB.", True),
    415: ("The body is in another Content-Encoding than gzip.", True),
    421: ("The Host is none of this machine's names.", False),
    431: ("The headers are over 60 KiB.", False),
    500: ("The service failed; its log has the details.", False),
    503: ("The service cannot be reached, drains, or its storage is read-only: try again.", False),
    504: ("The service took too long.", False),
}
_WHOLE_PATH: Final = re.compile(r"{(\w+)=\*\*}")
"""A parameter that holds what is left of a path; OpenAPI writes it as any other."""
_ERRORS: Final = re.compile(rf"\b({'|'.join(STATUSES)}): ([A-Z_]+(?:, [A-Z_]+)*)")

_SIMPLE: Final[Mapping[int, Json]] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
}
_INT32: Final = (-(2**31), 2**31 - 1)
_SAFE_DIGITS: Final = 18
"""So many digits always fit an int64."""
_DURATION_DIGITS: Final = 11
"""So many digits always fit a Duration's seconds."""


def describe(descriptors: bytes, version: str) -> Json:
    """Give the description as JSON's values, from a FileDescriptorSet with imports and source info."""
    return _Description(descriptors).document(version)


class _Description:
    def __init__(self, descriptors: bytes) -> None:
        files = FileDescriptorSet.FromString(descriptors)
        self._pool = DescriptorPool()
        for file in files.file:
            self._pool.AddSerializedFile(file.SerializeToString())
        self._comments = {name: comment for file in files.file for name, comment in _comments(file)}
        self._methods = self._pool.FindServiceByName(SERVICE).methods
        self._event = _reachable([self._pool.FindMessageTypeByName(EVENT)])
        outputs = _reachable(
            method.output_type for method in self._methods if method.output_type.full_name != BODY
        )
        inputs = _reachable(method.input_type for method in self._methods if self._rules(method))
        self._both_ways = inputs & (outputs | self._event)
        self._schemas: Json = {}

    def document(self, version: str) -> Json:
        paths: Json = {}
        for method in self._methods:
            for number, rule in enumerate(self._rules(method), 1):
                path, verb, operation = self._operation(method, rule, "" if number == 1 else str(number))
                paths.setdefault(path, {})[verb] = operation
        self._schemas["Status"] = self._status()
        about = _paragraphs(self._comments[self._package])
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "Orchestrator",
                "version": version,
                "description": f"{about}\n\n{_paragraphs(self._comments[SERVICE])}\n\n{_JSON}",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "paths": paths,
            "components": {
                "schemas": dict(sorted(self._schemas.items())),
                "responses": {str(status): _failure(said) for status, (said, _) in ALWAYS.items()},
            },
        }

    @property
    def _package(self) -> str:
        return SERVICE.rpartition(".")[0]

    # What the options say

    def _option(self, of: FieldDescriptor | MethodDescriptor, kind: str, name: str) -> Any:
        """Read a custom option: its type is known to our pool only, so the options are parsed again."""
        known = GetMessageClass(self._pool.FindMessageTypeByName(f"google.protobuf.{kind}"))
        options: Any = known.FromString(of.GetOptions().SerializeToString())
        return options.Extensions[self._pool.FindExtensionByName(name)]

    def _rules(self, method: MethodDescriptor) -> list[Any]:
        """Return the method's bindings; none: it is for gRPC only."""
        rule = self._option(method, "MethodOptions", "google.api.http")
        return [rule, *rule.additional_bindings] if rule.WhichOneof("pattern") else []

    def _behaves(self, field: FieldDescriptor, behaviour: str) -> bool:
        names = self._pool.FindEnumTypeByName("google.api.FieldBehavior").values_by_name
        found = self._option(field, "FieldOptions", "google.api.field_behavior")
        return names[behaviour].number in found

    def _limits(self, field: FieldDescriptor) -> Any:
        return self._option(field, "FieldOptions", f"{self._package}.limits")

    # Operations

    def _operation(self, method: MethodDescriptor, rule: Any, suffix: str) -> tuple[str, str, Json]:
        verb = rule.WhichOneof("pattern")
        path = _WHOLE_PATH.sub(r"{\1}", getattr(rule, verb))
        comment = _paragraphs(self._comments[method.full_name])
        in_path = set(re.findall(r"{(\w+)}", path))
        path_fields = {name for other in self._rules(method) for name in re.findall(r"{(\w+)", str(other))}
        parameters, fields = [], method.input_type.fields
        for field in fields:
            if field.name in in_path:
                parameters.append(self._parameter(field, "path"))
            elif not rule.body and field.name not in path_fields:
                parameters.append(self._parameter(field, "query"))
        if _gives_events(method):
            parameters.append(_LAST_EVENT_ID)
        operation: Json = {
            "operationId": method.name + suffix,
            "summary": comment.partition("\n")[0].partition(". ")[0].rstrip("."),
            "description": comment,
            "parameters": parameters,
        }
        if rule.body:
            body = self._ref(method.input_type, sent=True, without=in_path)
            required = any(self._behaves(field, "REQUIRED") for field in fields if field.name not in in_path)
            operation["requestBody"] = {"required": required, "content": _json_content(body)}
        operation["responses"] = self._responses(method, comment, writes=verb != "get", sends=bool(rule.body))
        return path, verb, operation

    def _parameter(self, field: FieldDescriptor, place: str) -> Json:
        schema = self._field(field, sent=True)
        described = schema.pop("description", "")
        required = place == "path"
        return {
            "name": field.json_name,
            "in": place,
            "required": required,
            "description": described,
            "schema": schema,
        }

    def _responses(self, method: MethodDescriptor, comment: str, *, writes: bool, sends: bool) -> Json:
        errors: dict[int, list[str]] = {}
        for code, reasons in _ERRORS.findall(comment):
            errors.setdefault(STATUSES[code], []).append(f"{code}: {reasons}.")
        for status, (said, only_writes) in ALWAYS.items():
            if not only_writes or (sends if status in (408, 413, 415) else writes):
                errors.setdefault(status, []).append(said)
        answers: Json = {}
        if _gives_events(method):
            answers["200"] = {
                "description": _EVENTS,
                "content": {"text/event-stream": {"schema": self._server_sent_event()}},
            }
            answers["204"] = {"description": "All of a finished instance's events have been read."}
        elif method.output_type.full_name == BODY:
            said = comment.partition("\n")[0]
            answers["200"] = {
                "description": said,
                "content": {media: {"schema": _body(media)} for media in MEDIA_TYPES[method.name]},
            }
        else:
            said = _paragraphs(self._comments[method.output_type.full_name])
            schema = self._ref(method.output_type, sent=False)
            answers["200"] = {"description": said, "content": _json_content(schema)}
        for status, reasons in sorted(errors.items()):
            common = status in ALWAYS and reasons == [ALWAYS[status][0]]
            answers[str(status)] = (
                {"$ref": f"#/components/responses/{status}"} if common else _failure(" ".join(reasons))
            )
        return answers

    # Schemas

    def _ref(self, message: Descriptor, *, sent: bool, without: Iterable[str] = ()) -> Json:
        """Refer to a message's schema: what a client sends is bound by limits, what it gets is complete."""
        name = message.name + ("Input" if sent and message.full_name in self._both_ways else "")
        if name not in self._schemas:
            self._schemas[name] = {}  # a message may hold itself
            self._schemas[name] = self._message(message, sent=sent, without=frozenset(without))
        return {"$ref": f"#/components/schemas/{name}"}

    def _message(self, message: Descriptor, *, sent: bool, without: frozenset[str]) -> Json:
        fields = [field for field in message.fields if field.name not in without]
        if sent:
            required = [field.json_name for field in fields if self._behaves(field, "REQUIRED")]
        else:
            # Envoy prints what has its default; the events of a stream leave it out.
            always = message.full_name not in self._event
            required = [field.json_name for field in fields if always and not field.has_presence]
        schema: Json = {
            "type": "object",
            "description": _paragraphs(self._comments.get(message.full_name, "")),
            "properties": {field.json_name: self._field(field, sent=sent) for field in fields},
        }
        if required:
            schema["required"] = required
        if sent:
            # Stricter than Envoy, which drops unknown fields: such a field is misspelt.
            schema["additionalProperties"] = False
        return schema

    def _field(self, field: FieldDescriptor, *, sent: bool) -> Json:
        limits = self._limits(field) if sent else None
        if field.message_type and field.message_type.GetOptions().map_entry:
            schema = self._map(field, limits)
        elif field.is_repeated:
            items = self._one(field, limits, sent=sent)
            schema = {"type": "array", "items": items, **_limited(limits, _LIST_LIMITS)}
        else:
            schema = self._one(field, limits, sent=sent)
        if sent and self._behaves(field, "OUTPUT_ONLY"):
            schema["readOnly"] = True
        return schema | {"description": _paragraphs(self._comments.get(field.full_name, ""))}

    def _map(self, field: FieldDescriptor, limits: Any) -> Json:
        entry: Any = field.message_type
        value = self._one(entry.fields_by_name["value"], None, sent=False)
        schema: Json = {"type": "object", "additionalProperties": value}
        if limits:
            value |= _limited(limits, {"max_length": "maxLength"})
            schema |= _limited(limits, {"max_items": "maxProperties"})
            schema["propertyNames"] = _limited(limits, {"pattern": "pattern"})
        return schema

    def _one(self, field: FieldDescriptor, limits: Any, *, sent: bool) -> Json:
        """Describe one value; `limits` is None where none hold."""
        if field.type == FieldDescriptor.TYPE_ENUM:
            return self._enum(field.enum_type, choose=sent and self._behaves(field, "REQUIRED"))
        if field.type == FieldDescriptor.TYPE_INT64:
            return {"type": "string", "format": "int64", "pattern": _int64(limits)}
        if field.message_type:
            match field.message_type.full_name:
                case "google.protobuf.FieldMask":
                    config = self._pool.FindMessageTypeByName(f"{self._package}.InstanceConfig")
                    path = "|".join(re.escape(path) for path in ("*", *_mask_paths(config)))
                    pattern = f"^(?:(?:{path})(?:,(?:{path}))*)?$"
                    return {"type": "string", "pattern": pattern, "examples": ["subtasks,budget.maxTokens"]}
                case "google.protobuf.Duration":
                    return {"type": "string", "pattern": _duration(limits), "examples": ["1.5s"]}
                case "google.protobuf.Timestamp":
                    return {"type": "string", "format": "date-time"}
            return self._ref(field.message_type, sent=sent)
        schema = dict(_SIMPLE[field.type])
        if limits and field.type == FieldDescriptor.TYPE_INT32:
            schema["minimum"], schema["maximum"] = _INT32
        return schema | _limited(limits, _LIMITS)

    def _enum(self, enum: Any, *, choose: bool) -> Json:
        """Describe an enum; `choose`: its unspecified value is not allowed."""
        if choose:
            return {"type": "string", "enum": [value.name for value in enum.values if value.number]}
        if enum.name not in self._schemas:
            self._schemas[enum.name] = {
                "type": "string",
                "enum": [value.name for value in enum.values],
                "description": self._values(enum),
            }
        return {"$ref": f"#/components/schemas/{enum.name}"}

    def _values(self, enum: EnumDescriptor) -> str:
        said = {value.name: self._comments[f"{enum.full_name}.{value.name}"] for value in enum.values}
        lines = [f"- `{name}`: {_paragraphs(comment)}" for name, comment in said.items()]
        return "\n".join([_paragraphs(self._comments[enum.full_name]), "", *lines])

    def _server_sent_event(self) -> Json:
        """Describe one event: OpenAPI before 3.2 has no word for a stream's items, and tools take it so."""
        event = self._pool.FindMessageTypeByName(EVENT)
        others = map(self._pool.FindMessageTypeByName, OTHER_EVENTS.values())
        names = [field.name for field in event.oneofs_by_name["payload"].fields]
        data = [self._ref(message, sent=False) for message in (event, *others)]
        return {
            "type": "object",
            "properties": {
                "id": {"type": "string", "pattern": "^[0-9]+$"},
                "event": {"type": "string", "enum": [*names, *OTHER_EVENTS]},
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": {"anyOf": data},
                },
            },
            "required": ["event", "data"],
        }

    def _status(self) -> Json:
        """Describe google.rpc.Status as Envoy renders it, of the service or its own."""
        details = []
        for name in ERROR_DETAILS:
            schema = self._message(
                self._pool.FindMessageTypeByName(name), sent=False, without=frozenset({"links"})
            )
            schema["properties"] = {"@type": {"const": f"type.googleapis.com/{name}"}, **schema["properties"]}
            schema["required"] = ["@type", *schema.get("required", [])]
            details.append({"title": name.rpartition(".")[2], **schema})
        return {
            "type": "object",
            "description": "Why a request failed.",
            "properties": {
                "code": {
                    "type": "integer",
                    "description": "The gRPC code's number; INVALID_ARGUMENT is 3.",
                },
                "message": {"type": "string", "description": "The cause and the mend, for people."},
                "details": {
                    "type": "array",
                    "description": "For programs. Of the service's own failures, ErrorInfo is the first.",
                    "items": {"anyOf": details},
                },
            },
            "required": ["code", "message", "details"],
        }


_LIST_LIMITS: Final = {"min_items": "minItems", "max_items": "maxItems"}
_LIMITS: Final = {
    "pattern": "pattern",
    "max_length": "maxLength",
    "max_bytes": "maxLength",
    "minimum": "minimum",
    "maximum": "maximum",
}
_JSON: Final = (
    "Values are those of protobuf's JSON: 64-bit integers are strings, durations are seconds as in `1.5s`, "
    "times are RFC 3339. In requests a field may also be named as in the proto (`request_id`), `null` is as "
    "if it were not there, numbers may be strings, and unknown fields of a body are dropped without a word; "
    "unknown query parameters are refused."
)
_EVENTS: Final = (
    "Server-Sent Events. `id:` is the sequence (of all instances: the position), `event:` the payload's name "
    "in snake_case, `data:` an Event as JSON without the fields that have their default. Comments keep a "
    "quiet stream alive. The last one of an instance is `event: end` with its state and sequence."
)
_LAST_EVENT_ID: Final[Json] = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "The last `id:` seen; wins over `afterSequence`. An EventSource sends it by itself.",
    "schema": {"type": "string", "pattern": f"^[0-9]{{0,{_SAFE_DIGITS}}}$"},
}


def _body(media_type: str) -> Json:
    return {} if media_type == "application/zip" else {"type": "string"}


def _gives_events(method: MethodDescriptor) -> bool:
    return method.server_streaming and method.output_type.full_name == BODY


def _failure(said: str) -> Json:
    return {"description": said, "content": _json_content({"$ref": "#/components/schemas/Status"})}


def _json_content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _limited(limits: Any, keywords: Mapping[str, str]) -> Json:
    """Those of the limits that are set, in JSON Schema's words."""
    fields = limits.ListFields() if limits else []
    return {keywords[field.name]: _whole(value) for field, value in fields if field.name in keywords}


def _int64(limits: Any) -> str:
    if limits is None or not limits.HasField("minimum"):
        return "^-?[0-9]+$" if limits is None else f"^-?[0-9]{{1,{_SAFE_DIGITS}}}$"
    return f"^[1-9][0-9]{{0,{_SAFE_DIGITS - 1}}}$" if limits.minimum else f"^[0-9]{{1,{_SAFE_DIGITS}}}$"


def _mask_paths(config: Descriptor) -> Iterator[str]:
    """Yield what a mask in JSON may name of a config: its fields that a client sets, and their scalars."""
    for field in config.fields:
        if field.name == "catalogue":
            continue  # output only
        yield field.json_name
        if field.message_type and not field.is_repeated:
            yield from (f"{field.json_name}.{part.json_name}" for part in field.message_type.fields)


def _duration(limits: Any) -> str:
    """Return a pattern that bounds the seconds' digits; the comment states the rest."""
    if limits is None:
        return r"^-?[0-9]+(\.[0-9]{1,9})?s$"
    digits = len(str(int(limits.maximum))) if limits.HasField("maximum") else _DURATION_DIGITS
    sign = "" if limits.HasField("minimum") else "-?"
    return rf"^{sign}[0-9]{{1,{digits}}}(\.[0-9]{{1,9}})?s$"


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _reachable(messages: Iterable[Descriptor]) -> frozenset[str]:
    """Return the full names of the messages and of all that they hold."""
    found: set[str] = set()
    waiting = list(messages)
    while waiting:
        message = waiting.pop()
        if message.full_name not in found:
            found.add(message.full_name)
            waiting += [field.message_type for field in message.fields if field.message_type]
    return frozenset(found)


def _comments(file: Any) -> Iterator[tuple[str, str]]:
    """Yield the leading comment of each element of a file, by its full name."""
    said = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
    yield file.package, said.get((_tag(file, "package"),), "")
    yield from _commented(file, said, file.package, ())


_NAMED: Final = {"message_type", "nested_type", "enum_type", "field", "value", "service", "method"}


def _commented(
    owner: Message, said: Mapping[tuple[int, ...], str], name: str, path: tuple[int, ...]
) -> Iterator[tuple[str, str]]:
    """Walk what has a name below a descriptor; `path` is protobuf's way of pointing to it."""
    for field in owner.DESCRIPTOR.fields:
        if field.name not in _NAMED:
            continue
        for number, element in enumerate(getattr(owner, field.name)):
            place, full_name = (*path, field.number, number), f"{name}.{element.name}"
            yield full_name, said.get(place, "")
            yield from _commented(element, said, full_name, place)


def _tag(message: Message, field: str) -> int:
    number: int = message.DESCRIPTOR.fields_by_name[field].number
    return number


def _paragraphs(comment: str) -> str:
    """Join the lines of a comment's paragraphs, keep its lists, and leave out what is said to buf."""
    lines = [line.strip() for line in comment.splitlines() if "buf:lint:" not in line]
    text = ""
    for line in lines:
        if not line or line.startswith("- "):
            text += "\n" if line else "\n\n"
        elif text and not text.endswith("\n"):
            text += " "
        text += line
    return re.sub(r"\n{3,}", "\n\n", text).strip()
