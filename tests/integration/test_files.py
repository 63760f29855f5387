"""The files of a result over gRPC: listed, one by one, in a zip; and refused where there are none."""

import zipfile
from collections.abc import AsyncIterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from support.service import Service, service

from orchestrator.client import Client, ServiceError
from orchestrator.core.files import File
from orchestrator.models.base import ModelRequest
from orchestrator.models.scripted import Scripted, plan_text
from orchestrator.rpc import files as files_module
from orchestrator.rpc.files import archive
from orchestrator.v1 import instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb

RESULT = """\
# Done

```python path=src/app.py
print("ä")
```

### `docs/two words.md`

```markdown
# Docs
```

`old/../x.py`
```
no file
```

```html index.html
<script>alert(1)</script>
```
"""
PATHS = ["docs/two words.md", "index.html", "src/app.py"]


def _answer(request: ModelRequest) -> str:
    is_large = "large" in request.prompt.messages[-1].content
    match request.prompt.role:
        case "planning":
            return plan_text(2)
        case "work":
            has_file = request.prompt.subtask_id == "t2" and not is_large
            return '```python path=src/app.py\nprint("ä")\n```\n' if has_file else "None."
        case "synthesis":
            large = "```text path=large.txt\n" + "0123456789abcdef\n" * (5 * 64 * 1024) + "```"
            return large if is_large else RESULT


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service with the instances `done`, `large`, and `waiting`, which is not complete."""
    path = tmp_path_factory.mktemp("files") / "log.db"
    async with service(path, Scripted(_answer)) as it, Client(it.address) as client:
        for name in ("done", "large"):
            await client.create(f"Do {name}", instance_id=name)
            await client.wait(name)
        config = instance_pb2.InstanceConfig(review_plan=True)
        await it.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="waiting", config=config))
        yield it


@pytest.fixture
async def client(running: Service) -> AsyncIterator[Client]:
    async with Client(running.address) as it:
        yield it


async def _refusal(call: Any) -> tuple[str, str, error_details_pb2.ErrorInfo]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    assert status
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return caught.value.code().name, status.message, info


async def test_files_are_listed_by_path_without_their_contents(client: Client) -> None:
    files = (await client.list_files("done")).files
    content = b'print("\xc3\xa4")\n'
    assert [file.path for file in files] == PATHS
    assert files[2] == instance_pb2.File(
        path="src/app.py",
        language="python",
        size_bytes=len(content),
        sha256=sha256(content).hexdigest(),
        source="t2",
    )
    assert [file.source for file in files] == ["result", "result", "t2"]


async def test_a_file_is_given_as_it_is(client: Client) -> None:
    assert await client.get_file("done", "src/app.py") == 'print("ä")\n'
    assert await client.get_file("done", "docs/two words.md") == "# Docs\n"


async def test_an_archive_holds_all_files_and_is_the_same_each_time(client: Client) -> None:
    data = await client.get_archive("done")
    assert data == await client.get_archive("done")
    with zipfile.ZipFile(BytesIO(data)) as held:
        assert held.testzip() is None
        assert held.namelist() == PATHS
        assert held.read("src/app.py").decode() == 'print("ä")\n'
        assert {entry.external_attr >> 16 for entry in held.infolist()} == {0o100644}


def test_names_in_an_archive_are_in_utf_8() -> None:
    with zipfile.ZipFile(BytesIO(archive([File("ä/日.txt", "x")]))) as held:
        assert held.namelist() == ["ä/日.txt"]


@pytest.mark.parametrize(
    "path", ["", "app.py", "/src/app.py", "src/../src/app.py", "./src/app.py", "x" * 5000]
)
async def test_a_path_that_is_none_of_the_files_is_not_found(running: Service, path: str) -> None:
    request = pb.GetFileRequest(id="done", path=path)
    code, message, info = await _refusal(running.stub.GetFile(request))
    assert (code, info.reason) == ("NOT_FOUND", "FILE_NOT_FOUND")
    assert ", ".join(PATHS) in message
    assert len(message) < 3000


@pytest.mark.parametrize("call", ["ListFiles", "GetFile", "GetArchive"])
async def test_there_are_no_files_before_there_is_a_result(running: Service, call: str) -> None:
    request = getattr(pb, f"{call}Request")
    code, message, info = await _refusal(getattr(running.stub, call)(request(id="waiting")))
    assert (code, info.reason) == ("FAILED_PRECONDITION", "STATE_FORBIDS")
    assert "no result" in message
    assert (await _refusal(getattr(running.stub, call)(request(id="absent"))))[
        2
    ].reason == "INSTANCE_NOT_FOUND"
    assert (await _refusal(getattr(running.stub, call)(request(id="-"))))[2].reason == "ID_INVALID"


async def test_a_file_that_is_larger_than_the_client_takes_is_refused_and_no_attachment(
    running: Service, client: Client
) -> None:
    request = pb.GetFileRequest(id="large", path="large.txt")
    call = running.stub.GetFile(request)
    code, message, info = await _refusal(call)
    assert (code, info.reason) == ("RESOURCE_EXHAUSTED", "RESPONSE_TOO_LARGE")
    assert "max-response-bytes" in message
    assert "content-security-policy" not in dict(await call.initial_metadata())
    assert len(await client.get_file("large", "large.txt")) == 17 * 5 * 64 * 1024
    assert len(await client.get_archive("large")) < 100_000
    assert [file.size_bytes for file in (await client.list_files("large")).files] == [17 * 5 * 64 * 1024]


async def test_an_instance_without_files_has_an_empty_list_and_an_empty_archive(tmp_path: Path) -> None:
    async with service(tmp_path / "log.db", Scripted()) as running, Client(running.address) as client:
        await client.create("x", instance_id="a")
        await client.wait("a")
        assert list((await client.list_files("a")).files) == []
        with zipfile.ZipFile(BytesIO(await client.get_archive("a"))) as held:
            assert held.namelist() == []
        with pytest.raises(ServiceError, match="it has none"):
            await client.get_file("a", "a.py")


async def test_a_long_result_is_read_beside_the_loop(
    running: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    offloaded = []

    async def offload(work: Any) -> Any:
        offloaded.append(work)
        return work()

    monkeypatch.setattr(files_module, "offload", offload)
    await running.stub.ListFiles(pb.ListFilesRequest(id="done"))
    assert not offloaded
    await running.stub.ListFiles(pb.ListFilesRequest(id="large"))
    assert offloaded
