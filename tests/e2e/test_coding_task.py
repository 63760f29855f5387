"""A coding task on a repository, from the command line: its files go in, the edited ones come out."""

import json
import subprocess
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.endpoint import Answer, Call, Endpoint
from support.process import Process, on_endpoint, process
from support.shell import Outcome, Shell

PROTOS = Path(__file__).parents[2] / "protos"
EVENT, LIMITS = "orchestrator/v1/event.proto", "orchestrator/v1/limits.proto"
PLAN = {
    "summary": "Both files get a line about their owner, below the syntax line.",
    "subtasks": [
        {"id": "event", "title": "Event", "instructions": "Add the line.", "files": [EVENT]},
        {"id": "limits", "title": "Limits", "instructions": "Add the line.", "files": [LIMITS]},
    ],
}
EDITED = {"event": EVENT, "limits": LIMITS}


def edited(path: str) -> str:
    """The file with a line more."""
    first, rest = (PROTOS / path).read_text().split("\n", 1)
    return f"{first}\n\n// Owned by the core team.\n{rest}"


def block(path: str) -> str:
    return f"```proto path={path}\n{edited(path)}```\n"


def script(call: Call) -> Answer:
    match call.role:
        case "planning":
            assert EVENT in call.prompt_text
            return json.dumps(PLAN)
        case "work":
            path = EDITED[call.subtask_id]
            given = ((PROTOS / path).read_text(), edited(path))
            assert any(text in call.prompt_text for text in given)
            return block(path)
        case _:
            return "Both files name their owner now.\n\n" + "\n".join(map(block, EDITED.values()))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with the protos of this project, an ignored file and one that is no text."""
    folder = tmp_path / "repository"
    for path in PROTOS.rglob("*.proto"):
        target = folder / path.relative_to(PROTOS)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (folder / ".gitignore").write_text("secret.txt\n")
    (folder / "secret.txt").write_text("not for models\n")
    (folder / "logo.png").write_bytes(b"\x89PNG\0")
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "As it was"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)
    return folder


@dataclass(frozen=True)
class Desk:
    """A service on the endpoint, and commands for it."""

    service: Process
    endpoint: Endpoint
    shell: Shell

    async def run(self, *arguments: str, code: int = 0) -> Outcome:
        outcome = await self.shell.run(*arguments)
        assert outcome.code == code, outcome.err
        return outcome

    async def complete(self, repository: Path) -> None:
        """Create the instance `task` on a repository, and wait for it."""
        await self.run("create", "Name the owner", "--dir", str(repository), "--id", "task")
        await self.run("wait", "task")

    @property
    def prompts(self) -> list[str]:
        return [call.prompt_text for call in self.endpoint.calls]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with (
        Endpoint(script) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
    ):
        shell = Shell.without_service(tmp_path)
        yield Desk(service, endpoint, shell.with_variables(ORCHESTRATOR_GRPC_ADDRESS=service.grpc_address))


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def apply(folder: Path, patch: str) -> None:
    subprocess.run(["git", "apply", "-"], cwd=folder, input=patch.encode(), check=True)


async def test_a_repository_is_edited_in_place_and_nothing_else_changes(desk: Desk, repository: Path) -> None:
    folder = str(repository)
    outcome = await desk.run("run", "Name the owner", "--dir", folder, "--out", folder, "--id", "task")
    assert outcome.out.startswith("Both files name their owner now.")
    assert "skipped 1 binary file: logo.png" in outcome.err
    assert f"wrote 2 files to {repository}: {EVENT} (changed), {LIMITS} (changed)" in outcome.err
    assert git(repository, "diff", "--name-only").split() == [EVENT, LIMITS]
    for path in EDITED.values():
        assert (repository / path).read_text() == edited(path)
    assert git(repository, "status", "--porcelain", "--untracked-files=all").count("\n") == 2
    assert not any("not for models" in prompt for prompt in desk.prompts)
    again = await desk.run("files", "task", "--out", folder)
    assert "nothing was written" in again.err


async def test_the_diff_is_shown_before_files_are_written(desk: Desk, repository: Path) -> None:
    folder = str(repository)
    outcome = await desk.run("run", "Name the owner", "--dir", folder, "--out", folder, "--diff")
    assert outcome.err.index("+// Owned by the core team.") < outcome.err.index("wrote 2 files")
    assert "+// Owned" not in outcome.out


async def test_the_files_of_a_result_are_listed_shown_as_a_diff_and_saved(
    desk: Desk, repository: Path, tmp_path: Path
) -> None:
    await desk.complete(repository)
    listed = (await desk.run("files", "tas")).out.splitlines()
    sources = {path: source for path, _, source in (line.split("\t") for line in listed)}
    assert (sources[EVENT], sources[LIMITS], sources[".gitignore"]) == ("event", "limits", "input")

    patch = (await desk.run("files", "task", "--diff")).out
    assert patch.count("+// Owned by the core team.") == 2
    apply(repository, patch)
    assert (repository / EVENT).read_text() == edited(EVENT)

    archive = tmp_path / "result.zip"
    await desk.run("files", "task", "--zip", str(archive))
    with zipfile.ZipFile(archive) as saved:
        assert sorted(saved.namelist()) == sorted(sources)
        assert saved.read(LIMITS).decode() == edited(LIMITS)
    assert "--force" in (await desk.run("files", "task", "--zip", str(archive), code=2)).err

    fresh = tmp_path / "fresh"
    outcome = await desk.run("files", "task", "--out", str(fresh))
    assert f"wrote {len(sources)} files to {fresh}" in outcome.err
    assert (fresh / EVENT).read_text() == edited(EVENT)


async def test_a_file_that_changed_meanwhile_is_not_written_over(desk: Desk, repository: Path) -> None:
    await desk.complete(repository)
    (repository / EVENT).write_text("edited by hand\n")
    refused = await desk.run("files", "task", "--out", str(repository), code=2)
    assert f"changed meanwhile, so nothing was written: {EVENT}" in refused.err
    assert git(repository, "diff", "--name-only").split() == [EVENT]
    assert (repository / EVENT).read_text() == "edited by hand\n"
    await desk.run("files", "task", "--out", str(repository), "--force")
    assert (repository / EVENT).read_text() == edited(EVENT)


async def test_a_file_that_the_result_leaves_alone_stays_as_it_is_unless_forced(
    desk: Desk, repository: Path
) -> None:
    await desk.complete(repository)
    await desk.run("files", "task", "--out", str(repository))
    (repository / ".gitignore").write_text("edited by hand\n")
    outcome = await desk.run("files", "task", "--out", str(repository))
    assert "has all that the result changes: nothing was written" in outcome.err
    await desk.run("files", "task", "--out", str(repository), "--force")
    assert (repository / ".gitignore").read_text() == "secret.txt\n"


async def test_a_follow_up_goes_on_with_the_result_and_its_files(desk: Desk, repository: Path) -> None:
    await desk.complete(repository)
    await desk.run("run", "Once more", "--continue", "tas", "--id", "next")
    assert any("Once more" in each and "Both files name their owner now." in each for each in desk.prompts)
    assert f"{EVENT}\t" in (await desk.run("files", "next")).out


async def test_where_to_write_must_be_said(desk: Desk) -> None:
    assert "--out DIR" in (await desk.run("run", "x", "--diff", code=2)).err
