"""Models that plan which files to give to whom, and what they were told."""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from orchestrator.core import files
from orchestrator.models.base import ModelRequest
from orchestrator.models.scripted import Answer, Scripted
from orchestrator.v1 import orchestrator_pb2 as pb
from orchestrator.v1.instance_pb2 import File


def plan_with(*lists: list[str]) -> str:
    entries = [
        {
            "id": f"t{number}",
            "title": f"Part {number}",
            "instructions": "Do it.",
            "depends_on": [],
            "worker": "",
            "files": paths,
        }
        for number, paths in enumerate(lists, 1)
    ]
    return json.dumps({"summary": "how", "subtasks": entries})


class Team:
    """Models that answer as they are told to, and keep what they were asked."""

    def __init__(
        self, *plans: str | Callable[[], Answer], outputs: dict[str, str] | None = None, result: str = "done"
    ) -> None:
        self.plans = list(plans) or [plan_with(["src/app.py"], [])]
        self.outputs = outputs or {}
        self.result = result
        self.asked: list[ModelRequest] = []
        self.provider = Scripted(self._answer)

    def _answer(self, request: ModelRequest) -> Answer | Awaitable[Answer]:
        self.asked.append(request)
        match request.prompt.role:
            case "planning":
                plan = self.plans.pop(0) if len(self.plans) > 1 else self.plans[0]
                return plan if isinstance(plan, str) else plan()
            case "work":
                return self.outputs.get(request.prompt.subtask_id, "did it")
            case "synthesis":
                return self.result

    def told(self, name: str) -> str:
        """What the user message of the last call for a role or a subtask said."""
        return next(
            request.prompt.messages[-1].content
            for request in reversed(self.asked)
            if name in (request.prompt.subtask_id, request.prompt.role)
        )

    def files(self, name: str) -> dict[str, str]:
        """The files that the last call for a role or a subtask was given."""
        found = re.search(r"^<files>\n(.*)\n</files>$", self.told(name), re.DOTALL | re.MULTILINE)
        return {path: each.content for path, each in files.find_files(found[1] if found else "").items()}


def wish(*brought: File, **more: Any) -> pb.CreateInstanceRequest:
    return pb.CreateInstanceRequest(**{"prompt": "Add pagination", "id": "a", "files": brought, **more})


async def refused(call: Any) -> tuple[str, str, str, dict[str, str]]:
    """Code, reason, field and metadata of a refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    assert status
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    fields = [
        violation.field
        for detail in status.details
        if detail.Unpack(request)
        for violation in request.field_violations
    ]
    return caught.value.code().name, info.reason, "".join(fields), dict(info.metadata)
