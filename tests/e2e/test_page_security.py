"""Hostile output of a model on the page: it runs and loads nothing."""

import json
from pathlib import Path

from playwright.async_api import Browser, Page, expect
from support.endpoint import Answer, Call, Endpoint
from support.page import create_instance, expect_state, open_page, page_url
from support.process import on_endpoint, process

VECTORS = [
    "<script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 1'>",
    "<svg onload='window.broken = 1'><script>window.broken = 1</script></svg>",
    "<iframe srcdoc='<script>parent.broken = 1</script>'></iframe>",
    "<style>main { display: none }</style><link rel=stylesheet href=http://127.0.0.1:9/a.css>",
    "<a href='javascript:window.broken = 1'>html link</a>",
    "[link](javascript:window.broken=1) [upper](JaVaScRiPt:window.broken=1)",
    "[data](data:text/html,<script>parent.broken=1</script>) [blob](blob:x) [file](file:///etc/passwd)",
    "[entity](&#106;avascript:window.broken=1) <javascript:window.broken=1>",
    '![picture](http://127.0.0.1:9/tracker.png) ![x](x" onerror="window.broken=1)',
    '```js" onmouseover="window.broken=1\nalert(1)\n```',
    "<form action=http://127.0.0.1:9/><button id=body name=querySelector>x</button></form>",
    "<details open ontoggle='window.broken = 1'>x</details>",
    "<math><mtext><table><mglyph><style><img src onerror=window.broken=1></style></table></mtext></math>",
    "<base href=http://127.0.0.1:9/><meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    "[home](/) [delete](//127.0.0.1:9/) [here](#/new)",
]
HOSTILE = "\n\n".join(VECTORS)


async def test_hostile_output_runs_and_loads_nothing(browser: Browser, tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        if call.role != "planning":
            return HOSTILE
        title = VECTORS[1][:190]
        subtask = {
            "id": "t1",
            "title": title,
            "instructions": HOSTILE,
            "depends_on": [],
            "worker": title[:90],
        }
        return json.dumps({"summary": HOSTILE, "subtasks": [subtask]})

    async with (
        Endpoint(script) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        requested_urls: list[str] = []
        page.on("request", lambda request: requested_urls.append(request.url))
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: dialogs.append(dialog.message))
        await create_instance(service, "a", prompt=HOSTILE, labels={"x": VECTORS[0]})
        await page.goto(page_url(service, "a"))
        await expect_state(page, "Complete")
        for row in await page.locator(".row").all():
            await row.click()
            await expect(row).to_have_attribute("aria-expanded", "true")
            await assert_inert(page)
        await expect(page.locator(".result .markdown")).to_contain_text("<script>window.broken = 1</script>")
        assert await page.evaluate("window.broken") is None
        assert dialogs == []
        home = f"http://{service.rest_address}/"
        assert [url for url in requested_urls if not url.startswith(home)] == []


async def assert_inert(page: Page) -> None:
    """Nothing in the document could run, load or lead into the service."""
    forbidden = "main :is(script, iframe, style, link, object, embed, img, base, meta, math, [style*=url])"
    assert await page.locator(forbidden).count() == 0
    attributes = await page.locator(".markdown *").evaluate_all(
        "all => [...new Set(all.flatMap(each => each.getAttributeNames()))]"
    )
    assert not [
        name for name in attributes if name.startswith("on") or name in {"id", "name", "src", "style"}
    ]
    links = await page.locator(".markdown a[href]").evaluate_all(
        "all => all.map(a => [a.href, a.rel, a.target])"
    )
    assert all(href.startswith(("http:", "https:", "mailto:")) for href, _, _ in links)
    assert all("noopener" in rel and target == "_blank" for _, rel, target in links)
    assert not [href for href, _, _ in links if "/-/ui" in href]


async def test_the_policy_blocks_what_the_sanitiser_might_miss(browser: Browser, tmp_path: Path) -> None:
    async with (
        Endpoint() as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        open_page(browser) as page,
    ):
        await page.goto(page_url(service))
        blocked = """async () => {
            const violated = new Promise((done) => document.addEventListener(
                'securitypolicyviolation', (violation) => done(violation.effectiveDirective)));
            try { %s } catch (error) { return error.name; }
            return violated;
        }"""
        assert await page.evaluate(blocked % "document.body.innerHTML += '<b>x</b>'") == "TypeError"
        assert await page.evaluate(blocked % "document.createElement('script').text = '1'") == "TypeError"
        picture = "new Image().src = 'http://127.0.0.1:9/tracker.png'"
        assert await page.evaluate(blocked % picture) == "img-src"
        style = "const s = document.createElement('style'); s.textContent = 'a{}'; document.body.append(s)"
        assert await page.evaluate(blocked % style) == "style-src-elem"
        frame = "const f = document.createElement('iframe'); f.src = '/'; document.body.append(f)"
        assert await page.evaluate(blocked % frame) == "frame-src"
