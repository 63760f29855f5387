"""Writes the routes of the page's files into envoy.yaml: `make page-routes`."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
WEB: Final = ROOT / "src/orchestrator/web"
BEGIN: Final = "# Written by `make page-routes`: all other files of the page.\n"
END: Final = "# End of what is written.\n"
# The anchors of the response headers that envoy.yaml gives to the first file of each kind.
HEADERS: Final = {".css": "style", ".js": "script", ".svg": "icon"}


def with_page_routes(text: str) -> str:
    """Return the text of envoy.yaml with its list of routes rebuilt from the files of the page."""
    head, _, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise SystemExit(f"envoy.yaml must have the lines {BEGIN!r} and {END!r}")
    indent = head.rpartition("\n")[2]
    names = sorted(file.relative_to(WEB).as_posix() for file in WEB.rglob("*") if file.suffix in HEADERS)
    unlisted = [name for name in names if f"filename: src/orchestrator/web/{name}}}" not in head + tail]
    routes = [
        f"- {{match: {{path: /-/ui/{name}}},"
        f" direct_response: {{status: 200, body: {{filename: src/orchestrator/web/{name}}}}},"
        " typed_per_filter_config: *not_transcoded,"
        f" response_headers_to_add: *{HEADERS[Path(name).suffix]}}}\n"
        for name in unlisted
    ]
    return f"{head}{BEGIN}{''.join(indent + route for route in routes)}{indent}{END}{tail}"


if __name__ == "__main__":
    file = ROOT / "envoy.yaml"
    file.write_text(with_page_routes(file.read_text()))
