"""docs/rest.md is run from top to bottom: each command is sent, and prints what is printed below it."""

import asyncio
import re
import sys
from pathlib import Path

from google.api import annotations_pb2
from support.endpoint import Answer, Call, Endpoint, hang
from support.process import on_endpoint, process

from orchestrator.v1 import orchestrator_pb2

DOCUMENT = Path(__file__).parents[2] / "docs/rest.md"
ADDRESS = "127.0.0.1:8787"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

CUT_SHORT = 28
"""curl's exit code for a stream that goes on when --max-time is over."""


def script(call: Call) -> Answer:
    """The epic takes for ever, the rest is there at once; of a page the result holds two files."""
    if "page" in call.prompt_text and call.role == "synthesis":
        files = {"index.html": "<h1>Hello</h1>", "css/style.css": "h1 { color: teal }"}
        return "".join(f"```text path={path}\n{content}\n```\n\n" for path, content in files.items())
    return hang if "epic" in call.prompt_text else None


def blocks() -> list[tuple[str, str]]:
    """Each block's language and text."""
    return [(found[1], found[2]) for found in BLOCK.finditer(DOCUMENT.read_text())]


def shown(text: str) -> str:
    """A pattern for what is printed: an ellipsis stands for anything."""
    return ".*".join(map(re.escape, text.rstrip("\n").split("…")))


async def output_of(address: str, *command: str) -> str:
    run = await asyncio.create_subprocess_exec(
        *(part.replace(ADDRESS, address) for part in command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(run.communicate(), 60)
    assert run.returncode in {0, CUT_SHORT}, errors.decode()
    return output.decode()


async def test_every_command_prints_what_the_document_shows(tmp_path: Path) -> None:
    async with (
        Endpoint(script, subtasks=1) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
    ):
        asked = ""
        for language, text in blocks():
            match language:
                case "bash":
                    asked = text
                case "json" | "":
                    answer = await output_of(service.rest_address, "bash", "-c", asked)
                    assert re.fullmatch(shown(text), answer.rstrip("\n"), re.DOTALL), asked + answer
                case "python":
                    answer = await output_of(service.rest_address, sys.executable, "-c", text)
                    assert answer.splitlines()[0] == "1 instance_created"
                    assert answer.splitlines()[-1].endswith(" end")


def test_every_binding_is_shown_with_a_command() -> None:
    commands = "".join(text for language, text in blocks() if language == "bash")
    for method in orchestrator_pb2.DESCRIPTOR.services_by_name["Orchestrator"].methods:
        rule = method.GetOptions().Extensions[annotations_pb2.http]
        for binding in (rule, *rule.additional_bindings) if rule.WhichOneof("pattern") else ():
            path = re.escape(getattr(binding, binding.WhichOneof("pattern"))).replace(r"\{id\}", r"[\w-]+")
            path = path.replace(re.escape("{path=**}"), r"[\w./%-]+")
            assert re.search(rf"{re.escape(ADDRESS)}{path}['? \n]", commands), method.name
