"""Files on the page: those of a result, those attached to a new instance, and follow-ups."""

import json
import random
import re
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, FilePayload, Locator, Page, expect
from support.browser import DESKTOP, PHONE
from support.endpoint import Answer, Call, Endpoint
from support.page import (
    assert_accessible,
    assert_fits_phone,
    button,
    create_instance,
    evaluate_in_module,
    expect_state,
    get_instance,
    lane,
    open_page,
    page_url,
)
from support.process import Process, on_endpoint, process

APP = "import sys\n\n\ndef app():\n    return 1\n\n\nif __name__ == '__main__':\n    sys.exit(app())\n"
EDITED_APP = APP.replace("return 1", "return 2")
HOSTILE = "<script>window.broken = 1</script>\n<img src=x onerror='window.broken = 1'>\n"
GIVEN = [
    {"path": "src/app.py", "content": APP},
    {"path": "README.md", "content": "# Shop\n"},
    {"path": "src/data/one.json", "content": "{}\n"},
]
RESULT = {"src/app.py": EDITED_APP, "docs/two words.md": "# Guide\n", "index.html": HOSTILE}
MANY = 600


def block(path: str, content: str) -> str:
    language = "python" if path.endswith(".py") else "text"
    return f'```{language} path="{path}"\n{content}```\n\n'


def script(call: Call) -> Answer:
    if call.role == "planning":
        subtasks = [
            {"id": "app", "title": "The app", "instructions": "Edit it."},
            {"id": "docs", "title": "The guide", "instructions": "Write it."},
        ]
        return json.dumps({"summary": "Two parts.", "subtasks": subtasks})
    if call.role == "work":
        is_edit = call.subtask_id == "app" and "Build it" in call.prompt_text
        return block("src/app.py", EDITED_APP) if is_edit else "See the synthesis."
    if "many files" in call.prompt_text:
        return "".join(block(f"part{n % 30}/file{n}.txt", f"{n}\n") for n in range(MANY))
    if "no files" in call.prompt_text:
        return "There is nothing to write."
    return "Done.\n\n" + "".join(block(path, content) for path, content in RESULT.items())


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    """A service whose instance `shop` is complete with files."""
    async with (
        Endpoint(script) as endpoint,
        process(tmp_path_factory.mktemp("files"), "up", **on_endpoint(endpoint.url)) as running,
    ):
        await create_instance(running, "shop", files=GIVEN)
        yield running


async def open_shop(page: Page, service: Process) -> None:
    await page.goto(page_url(service, "shop"))
    await expect_state(page, "Complete")
    await expect(rows(page).first).to_be_visible()


def rows(page: Page) -> Locator:
    return page.get_by_role("treeitem")


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("treeitem", name=name)


def text_shown(page: Page) -> Locator:
    return page.locator(".file pre")


async def test_a_results_files_are_a_tree_with_their_texts_and_writers(page: Page, service: Process) -> None:
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await open_shop(page, service)
    assert await rows(page).locator(".name").all_inner_texts() == [
        "docs/",
        "two words.md",
        "src/",
        "data/",
        "one.json",
        "app.py",
        "README.md",
        "index.html",
    ]
    await expect(page.locator(".files > header")).to_contain_text("5 files")
    await expect(page.locator(".files > header")).to_contain_text("2 new · 1 changed · 2 unchanged")
    await row(page, "app.py, changed").click()
    await expect(text_shown(page)).to_have_text(EDITED_APP)
    await expect(text_shown(page).locator(".hljs-keyword").first).to_have_text("import")
    await button(page, "Copy src/app.py").click()
    await expect(page.locator(".file .copy .status")).to_have_text("Copied")
    assert await page.evaluate("navigator.clipboard.readText()") == EDITED_APP
    await expect(page.locator(".file header")).to_contain_text("changed by The app")
    await page.get_by_role("link", name="The app", exact=True).click()
    await expect(lane(page, "The app").locator(".row")).to_be_focused()
    await expect(lane(page, "The app").locator(".panel")).to_be_visible()
    await row(page, "two words.md, new").click()
    await expect(page.locator(".file header")).to_contain_text("written by the synthesis")
    await row(page, "README.md").click()
    await expect(page.locator(".file header")).to_contain_text("unchanged input")
    await expect(text_shown(page)).to_have_text("# Shop\n")


async def test_files_are_downloaded_as_they_are(page: Page, service: Process) -> None:
    await open_shop(page, service)
    await row(page, "two words.md").click()
    async with page.expect_download() as started:
        await page.get_by_role("link", name="Download docs/two words.md").click()
    download = await started.value
    assert download.suggested_filename == "two words.md"
    assert Path(await download.path()).read_text() == "# Guide\n"
    async with page.expect_download() as started:
        await page.get_by_role("link", name="Download .zip").click()
    download = await started.value
    assert download.suggested_filename == "shop.zip"
    with zipfile.ZipFile(await download.path()) as archive:
        assert {name: archive.read(name).decode() for name in archive.namelist()} == {
            **{file["path"]: file["content"] for file in GIVEN},
            **RESULT,
        }


async def test_a_changed_file_is_compared_with_the_input_file(page: Page, service: Process) -> None:
    await open_shop(page, service)
    await row(page, "app.py, changed").click()
    await button(page, "Changes").click()
    await expect(page.locator(".diff del")).to_have_text("-    return 1\n")
    await expect(page.locator(".diff ins")).to_have_text("+    return 2\n")
    await expect(page.locator(".diff .position")).to_have_text("@@ -2 +2 @@\n")
    await expect(page.locator(".file")).to_contain_text("1 line removed, 1 line added")
    await button(page, "Changes").click()
    await expect(text_shown(page)).to_have_text(EDITED_APP)
    await row(page, "two words.md").click()
    await expect(text_shown(page)).to_have_text("# Guide\n")
    await expect(button(page, "Changes")).to_have_count(0)


async def test_a_file_is_shown_as_text_and_runs_nothing(page: Page, service: Process) -> None:
    await open_shop(page, service)
    await row(page, "index.html").click()
    await expect(text_shown(page)).to_have_text(HOSTILE)
    assert await page.locator("main :is(script, img, iframe)").count() == 0
    assert await page.evaluate("window.broken") is None


async def test_the_tree_works_by_keyboard(page: Page, service: Process) -> None:
    await open_shop(page, service)
    focused = page.locator(":focus .name")
    await page.get_by_role("link", name="Download .zip").focus()
    await page.keyboard.press("Tab")
    await expect(focused).to_have_text("docs/")
    for key, name in [
        ("ArrowDown", "two words.md"),
        ("ArrowLeft", "docs/"),
        ("ArrowLeft", "docs/"),
        ("ArrowDown", "src/"),
        ("End", "index.html"),
        ("Home", "docs/"),
        ("r", "README.md"),
        ("i", "index.html"),
        ("ArrowUp", "README.md"),
        ("ArrowUp", "app.py"),
    ]:
        await page.keyboard.press(key)
        await expect(focused).to_have_text(name)
    await expect(row(page, "docs")).to_have_attribute("aria-expanded", "false")
    await expect(row(page, "two words.md")).to_have_count(0)
    await page.keyboard.press("Enter")
    await expect(text_shown(page)).to_have_text(EDITED_APP)
    await expect(row(page, "app.py")).to_have_attribute("aria-selected", "true")
    await expect(focused).to_have_text("app.py")
    await page.keyboard.press("Tab")
    await expect(page.locator(":focus")).to_have_text("The app")
    await page.keyboard.press("Tab")
    await expect(page.locator(":focus")).to_have_text("Changes")


async def test_of_hundreds_of_files_only_what_is_opened_is_rendered_and_read(
    page: Page, service: Process
) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url.partition("/many/")[2]))
    await create_instance(service, "many", prompt="Write many files")
    await page.goto(page_url(service, "many"))
    await expect_state(page, "Complete")
    await expect(rows(page)).to_have_count(30)
    await row(page, "part7").click()
    await expect(rows(page)).to_have_count(30 + MANY // 30)
    await row(page, "file37.txt").click()
    await expect(text_shown(page)).to_have_text("37\n")
    assert [path for path in requested if path.startswith("files")] == ["files", "files/part7/file37.txt"]


async def test_an_instance_without_files_has_no_section_for_them(page: Page, service: Process) -> None:
    await create_instance(service, "none", prompt="Write no files")
    await page.goto(page_url(service, "none"))
    await expect_state(page, "Complete")
    await expect(page.locator(".result")).to_be_visible()
    await expect(page.locator(".files, .input-files")).to_have_count(0)


async def test_files_are_listed_again_after_an_outage(page: Page, service: Process) -> None:
    await page.route("**/shop/files", lambda route: route.abort(), times=1)
    await page.goto(page_url(service, "shop"))
    await expect(row(page, "index.html")).to_be_visible()


async def test_attached_files_are_what_the_instance_works_on(page: Page, service: Process) -> None:
    await page.goto(f"{page_url(service)}#/new")
    await page.get_by_label("Prompt").fill("Build it")
    await page.locator("input[name=files]").set_input_files(
        [
            FilePayload(name="a.py", mimeType="", buffer=b"a = 1\n"),
            FilePayload(name="b.txt", mimeType="", buffer="Grüße\n".encode()),
            FilePayload(name="logo.png", mimeType="", buffer=b"\x89PNG\0"),
            FilePayload(name="latin1.txt", mimeType="", buffer=b"Gr\xfc\xdfe"),
            FilePayload(name="large.csv", mimeType="", buffer=b"x" * (1024**2 + 1)),
        ]
    )
    notice = page.locator(".attachments [role=status]")
    await expect(notice).to_have_text(
        "2 files added. No text in UTF-8, left out: logo.png, latin1.txt. "
        "Over 1.0 MiB, left out: large.csv (1.0 MiB)."
    )
    attached = page.locator(".attachments li code")
    await expect(attached).to_have_text(["a.py", "b.txt"])
    await button(page, "Remove a.py").click()
    await expect(attached).to_have_text(["b.txt"])
    await button(page, "Start").click()
    await expect_state(page, "Complete")
    await page.get_by_text("1 input file, 8 bytes").click()
    await expect(page.locator(".input-files li")).to_have_text("b.txt 8 bytes")
    given = await get_instance(service, page.url.rpartition("/")[2])
    assert [(file["path"], file["content"]) for file in given["files"]] == [("b.txt", "Grüße\n")]


async def test_too_many_or_too_large_files_are_refused_with_the_largest_named(
    page: Page, service: Process
) -> None:
    await page.goto(f"{page_url(service)}#/new")
    chosen = page.locator("input[name=files]")
    failure = page.locator(".attachments [role=alert]")
    small = FilePayload(name="small.txt", mimeType="", buffer=b"x")
    large = [FilePayload(name=f"l{n}.txt", mimeType="", buffer=b"x" * 1024**2) for n in range(8)]
    await chosen.set_input_files([small, *large[:4]])
    await expect(page.locator(".attachments li")).to_have_count(5)
    await chosen.set_input_files([*large[4:], FilePayload(name="m.txt", mimeType="", buffer=b"x" * 9000)])
    await expect(failure).to_contain_text("Nothing was added: the files would have 8.0 MiB together")
    await expect(failure).to_contain_text("l0.txt (1.0 MiB)")
    await chosen.set_input_files(
        [FilePayload(name=f"n{n}.txt", mimeType="", buffer=b"x") for n in range(996)]
    )
    await expect(failure).to_contain_text("there would be 1,001 files, and there may be 1,000")
    await expect(page.locator(".attachments li")).to_have_count(5)
    await button(page, "Remove all").click()
    await expect(failure).to_have_count(0)
    await expect(page.locator(".attachments li")).to_have_count(0)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for path in ("src/app.py", "README.md", ".git/HEAD", "web/node_modules/x/index.js"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("x\n")
    return folder


PROJECT_NOTICE = "2 files added. Folders left out: .git, web/node_modules."


async def test_a_chosen_folder_is_attached_without_what_its_tools_keep_there(
    page: Page, service: Process, project: Path
) -> None:
    await page.goto(f"{page_url(service)}#/new")
    await page.locator("input[name=folder]").set_input_files(project)
    await expect(page.locator(".attachments li code")).to_have_text(["README.md", "src/app.py"])
    assert sorted_notice(await page.locator(".attachments [role=status]").inner_text()) == PROJECT_NOTICE


async def test_a_folder_and_files_are_attached_when_dropped_on_the_form(
    page: Page, service: Process, project: Path
) -> None:
    await page.goto(f"{page_url(service)}#/new")
    await drop(page, page.get_by_label("Prompt"), project)
    attached = page.locator(".attachments li code")
    await expect(attached).to_have_text(["README.md", "src/app.py"])
    assert sorted_notice(await page.locator(".attachments [role=status]").inner_text()) == PROJECT_NOTICE
    (project / "more.txt").write_text("more\n")
    await drop(page, page.get_by_label("Prompt"), project / "more.txt", project / "src")
    await expect(attached).to_have_text(["README.md", "more.txt", "src/app.py"])
    assert page.url.endswith("#/new")


def sorted_notice(text: str) -> str:
    """Return the notice with the folders in order: a file system has none."""
    head, _, folders = text.partition("left out: ")
    return f"{head}left out: {', '.join(sorted(folders.removesuffix('.').split(', ')))}."


async def drop(page: Page, target: Locator, *paths: Path) -> None:
    """Drop files and folders of this computer on an element."""
    box = await target.bounding_box()
    assert box
    session = await page.context.new_cdp_session(page)
    place = {"x": box["x"] + 20, "y": box["y"] + 20}
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        await session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})


async def test_a_complete_instance_is_continued_and_the_chain_is_shown(page: Page, service: Process) -> None:
    await open_shop(page, service)
    for prompt in ("Now add hats", "Now add gloves"):
        await button(page, "Continue…").click()
        await page.get_by_role("dialog").get_by_label("What is to be done next?").fill(prompt)
        await button(page, "Continue").click()
        await expect(page.locator("h1")).to_have_text(prompt)
        await expect_state(page, "Complete")
    predecessors = page.locator(".predecessors a")
    await expect(predecessors).to_have_count(2)
    await expect(page.locator(".item").first).to_contain_text("follow-up")
    await page.get_by_text("5 input files").click()
    await expect(page.locator(".input-files li")).to_have_count(5)
    await predecessors.last.click()
    await expect(page.locator("h1")).to_have_text("Build it")


async def test_of_a_chain_those_that_are_deleted_are_still_named(page: Page, service: Process) -> None:
    async with httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False) as rest:
        for instance_id, predecessor in (("one", "shop"), ("two", "one"), ("three", "two")):
            await create_instance(service, instance_id, continues=predecessor)
            await rest.get(f"/{instance_id}:wait", params={"timeout": "60s"})
        assert (await rest.delete("/one")).status_code == 200
    await page.goto(page_url(service, "three"))
    await expect(page.locator(".predecessors")).to_have_text("continues two, which continues one")
    await page.get_by_role("link", name="one", exact=True).click()
    await expect(page.locator("h1")).to_have_text("No such instance")


async def test_of_a_deleted_instance_nothing_can_be_downloaded(page: Page, service: Process) -> None:
    await create_instance(service, "gone")
    await page.goto(page_url(service, "gone"))
    download = page.get_by_role("link", name="Download .zip")
    await expect(download).to_be_visible()
    async with httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False) as rest:
        assert (await rest.delete("/gone")).status_code == 200
    await expect(download).to_have_count(0)
    await expect(row(page, "index.html")).to_be_visible()


HOLD_READING = """() => {
    const { arrayBuffer } = Blob.prototype;
    const released = new Promise((release) => (window.release = release));
    Blob.prototype.arrayBuffer = async function () { await released; return arrayBuffer.call(this); };
}"""


async def test_nothing_starts_before_what_is_attached_is_read(page: Page, service: Process) -> None:
    await page.goto(f"{page_url(service)}#/new")
    await page.get_by_label("Prompt").fill("Build it")
    await expect(button(page, "Start")).to_be_enabled()
    await page.evaluate(HOLD_READING)
    await page.locator("input[name=files]").set_input_files(
        FilePayload(name="x.txt", mimeType="", buffer=b"x")
    )
    await expect(page.locator(".attachments [role=status]")).to_have_text("Reading them…")
    await expect(button(page, "Start")).to_be_disabled()
    await page.evaluate("release()")
    await expect(page.locator(".attachments li code")).to_have_text(["x.txt"])
    await expect(button(page, "Start")).to_be_enabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_no_violations_among_files(browser: Browser, service: Process, scheme: str) -> None:
    async with open_page(browser, color_scheme=scheme, **DESKTOP) as page:
        await open_shop(page, service)
        await page.get_by_text("3 input files").click()
        await row(page, "index.html").click()
        await expect(text_shown(page)).to_have_text(HOSTILE)
        await assert_accessible(page)
        await row(page, "app.py").click()
        await button(page, "Changes").click()
        await expect(page.locator(".diff ins")).to_be_visible()
        await assert_accessible(page)
        await button(page, "Continue…").click()
        await assert_accessible(page)
        await page.goto(f"{page_url(service)}#/new")
        await page.locator("input[name=files]").set_input_files(
            FilePayload(name="a.py", mimeType="", buffer=b"a = 1\n")
        )
        await expect(page.locator(".attachments li")).to_have_count(1)
        await assert_accessible(page)


async def test_at_phone_width_files_do_not_scroll_the_page_sideways(
    browser: Browser, service: Process
) -> None:
    async with open_page(browser, **PHONE) as page:
        await open_shop(page, service)
        await row(page, "app.py").tap()
        await expect(text_shown(page)).to_have_text(EDITED_APP)
        await assert_fits_phone(page)
        await button(page, "Changes").tap()
        await expect(page.locator(".diff ins")).to_be_visible()
        await assert_fits_phone(page)
        await button(page, "Continue…").tap()
        await assert_fits_phone(page)
        await page.goto(f"{page_url(service)}#/new")
        await page.locator("input[name=files]").set_input_files(
            FilePayload(name=f"{'long' * 50}.py", mimeType="", buffer=b"a = 1\n")
        )
        await expect(page.locator(".attachments li")).to_have_count(1)
        await assert_fits_phone(page)


def random_text(source: random.Random) -> str:
    lines = [source.choice("abcd") * source.choice((0, 1, 1)) for _ in range(source.randrange(25))]
    return "\n".join(lines)


def common_lines(one: list[str], other: list[str]) -> int:
    """The length of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for line in one:
        before = lengths[:]
        for number, each in enumerate(other, 1):
            lengths[number] = (
                before[number - 1] + 1 if line == each else max(before[number], lengths[number - 1])
            )
    return lengths[-1]


def applied(before: list[str], hunks: list[dict[str, Any]]) -> str:
    """Apply a diff as patch does: each hunk must fit where it says that it begins."""
    after: list[str] = []
    done = 0
    for hunk in hunks:
        after += before[done : hunk["before"] - 1]
        done = hunk["before"] - 1
        assert len(after) == hunk["after"] - 1
        for line in hunk["lines"]:
            if line["sign"] != "+":
                assert before[done] == line["text"]
                done += 1
            if line["sign"] != "-":
                after.append(line["text"])
    return "".join(after + before[done:])


DIFF = "return a.map(([before, after]) => m.diff(before, after))"


async def test_a_diff_applies_and_no_other_is_shorter(page: Page, service: Process) -> None:
    source = random.Random(1)
    pairs = [(random_text(source), random_text(source)) for _ in range(400)]
    pairs += [("", ""), ("", "a\n"), ("a\n", ""), ("a\n", "a"), ("a\r\n", "a\n"), ("a\n" * 50, "a\n" * 51)]
    diffs = await evaluate_in_module(page, page_url(service), "diff.js", DIFF, *pairs)
    for (before, after), found in zip(pairs, diffs, strict=True):
        one, other = split(before), split(after)
        assert applied(one, found["hunks"]) == after
        common = common_lines(one, other)
        assert (found["removed"], found["added"]) == (len(one) - common, len(other) - common)


def split(text: str) -> list[str]:
    return [line for line in re.split(r"(?<=\n)", text) if line]


async def test_a_diff_of_too_much_is_none(page: Page, service: Process) -> None:
    numbers = [f"{n}\n" for n in range(60_000)]
    pairs = [
        ("".join(numbers), "".join([*numbers, "more\n"])),
        ("".join(numbers[:1001]), "".join(numbers[20_000:21_001])),
        ("".join(numbers), "".join(reversed(numbers))),
    ]
    small, *large = await evaluate_in_module(page, page_url(service), "diff.js", DIFF, *pairs)
    assert (small["removed"], small["added"], len(small["hunks"])) == (0, 1, 1)
    assert large == [None, None]
