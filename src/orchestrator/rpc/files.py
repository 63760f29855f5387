"""The methods that give a result: whole, as Markdown, and as the files that it holds."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from typing import Final, TypeVar
from urllib.parse import quote
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from google.api.httpbody_pb2 import HttpBody

from orchestrator.core.files import File, input_files, result_files, write_file
from orchestrator.core.instance import COMPLETE, Instance
from orchestrator.core.wire import STATUS
from orchestrator.errors import ResultFileNotFoundError, StateForbidsError
from orchestrator.log.tenant_view import TenantView
from orchestrator.offload import offload
from orchestrator.rpc import sizes
from orchestrator.rpc.requests import Context
from orchestrator.v1 import orchestrator_pb2 as pb

T = TypeVar("T")

_MARKDOWN: Final = "text/markdown; charset=utf-8"
_ZIP: Final = "application/zip"
_MAX_READ_HERE: Final = 16 * 1024
"""How many characters of texts are searched for files on the loop, for up to 20 ms; more are in a thread."""
_MEDIA_TYPES: Final[Mapping[str, str]] = {
    "css": "text/css",
    "csv": "text/csv",
    "ics": "text/calendar",
    "json": "application/json",
    "markdown": "text/markdown",
    "md": "text/markdown",
    "py": "text/x-python",
    "rtf": "text/rtf",
    "svg": "image/svg+xml",
    "tsv": "text/tab-separated-values",
    "vcf": "text/vcard",
}
"""By a name's ending; all else is plain text."""
_ACTIVE: Final = frozenset(
    {
        "atom",
        "cjs",
        "dtd",
        "hta",
        "htc",
        "htm",
        "html",
        "js",
        "mathml",
        "mht",
        "mhtml",
        "mjs",
        "mml",
        "rdf",
        "rss",
    }
    | {"shtml", "svg", "svgz", "xht", "xhtml", "xml", "xsd", "xsl", "xslt"}
)
"""The endings of what a browser may run scripts of."""
_DISPOSITION: Final = "content-disposition"
_POLICY: Final = ("content-security-policy", "default-src 'none'; sandbox")
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can hold: an archive says nothing but its files."""
_REGULAR_FILE: Final = 0o100644 << 16
_UNIX: Final = 3


class FileMethods:
    """GetResult, ListFiles, GetFile and GetArchive."""

    def __init__(self, view: Callable[[], TenantView]) -> None:
        """`view` returns what the caller of the RPC that is being answered sees of the log."""
        self._seen = view

    async def GetResult(self, request: pb.GetResultRequest, _: Context) -> HttpBody:
        """Answer with the final result alone."""
        instance = await self._complete(request.id, "give its result")
        return HttpBody(content_type=_MARKDOWN, data=instance.final_result.encode())

    async def ListFiles(self, request: pb.ListFilesRequest, _: Context) -> pb.ListFilesResponse:
        """List the files of the result."""
        return await _work(await self._complete(request.id, "list its files"), _listing)

    async def GetFile(self, request: pb.GetFileRequest, context: Context) -> bytes:
        """Answer with one file."""
        instance = await self._complete(request.id, "give a file")
        files = await _work(instance, result_files)
        file = next((file for file in files if file.path == request.path), None)
        if file is None:
            raise ResultFileNotFoundError(request.id, request.path, [file.path for file in files])
        body = HttpBody(content_type=f"{_media_type(file.path)}; charset=utf-8", data=file.content.encode())
        name = file.path.rpartition("/")[2]
        return await _send(context, "GetFile", body, name if _ending(file.path) in _ACTIVE else "")

    async def GetArchive(self, request: pb.GetArchiveRequest, context: Context) -> bytes:
        """Answer with all files."""
        instance = await self._complete(request.id, "give its files")
        body = HttpBody(content_type=_ZIP, data=await _work(instance, _archive))
        return await _send(context, "GetArchive", body, f"{request.id}.zip")

    async def _complete(self, instance_id: str, action: str) -> Instance:
        """Load an instance; raise StateForbidsError unless it is complete."""
        instance = (await self._seen().load(instance_id)).instance
        if instance.state != COMPLETE:
            raise StateForbidsError(
                instance_id, state=STATUS[instance.state], action=action, why=": it has no result yet"
            )
        return instance


async def _work(instance: Instance, work: Callable[[Instance], T]) -> T:
    """Do work on a result at once; in a thread where it is long, for it would block the loop."""
    texts = [instance.final_result, *(subtask.output for subtask in instance.subtasks.values())]
    texts += [file.content for file in input_files(instance)]
    if sum(map(len, texts)) > _MAX_READ_HERE:
        return await offload(partial(work, instance))
    return work(instance)


def _listing(instance: Instance) -> pb.ListFilesResponse:
    response = pb.ListFilesResponse()
    for file in result_files(instance):
        write_file(response.files.add(), file)
    return response


def _archive(instance: Instance) -> bytes:
    return archive(result_files(instance))


def archive(files: Sequence[File]) -> bytes:
    """Put files into a zip, which is the same for the same files."""
    buffer = BytesIO()
    with ZipFile(buffer, "w", ZIP_DEFLATED) as written:
        for file in files:
            entry = ZipInfo(file.path, _EPOCH)
            entry.compress_type = ZIP_DEFLATED
            entry.create_system = _UNIX
            entry.external_attr = _REGULAR_FILE
            written.writestr(entry, file.content.encode())
    return buffer.getvalue()


async def _send(context: Context, method: str, body: HttpBody, attachment: str) -> bytes:
    """Send the headers of a body and return it serialised; `attachment` is the name to save it as, if any.

    Headers cannot be taken back, so the size is checked before: an error is no attachment.
    """
    data = sizes.check_size(body.SerializeToString(), sizes.max_response_bytes(context), method)
    named = ((_DISPOSITION, _attachment(attachment)),) if attachment else ()
    await context.send_initial_metadata((_POLICY, *named))
    return data


def _attachment(name: str) -> str:
    """Return RFC 6266's value: the name in ASCII for old clients, and in UTF-8 where that is another."""
    plain = "".join(character if character.isalnum() or character in " ._-" else "_" for character in name)
    plain = plain.encode("ascii", "replace").decode().replace("?", "_")
    extended = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'attachment; filename="{plain}"{extended}'


def _media_type(path: str) -> str:
    ending = _ending(path)
    return _MEDIA_TYPES.get(ending, "text/plain")


def _ending(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[2].lower()
