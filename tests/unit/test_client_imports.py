"""The client is light: a program that uses it loads nothing of the service."""

import subprocess
import sys

OWN = ("orchestrator.client", "orchestrator.errors", "orchestrator.v1")
OF_THE_SERVER = {
    "aiohttp",
    "aiosqlite",
    "genai_prices",
    "httpx",
    "platformdirs",
    "rich",
    "sqlite3",
    "typer",
    "yaml",
}
LIST_MODULES = "import sys, orchestrator.client; print(*sys.modules)"


def test_importing_the_client_loads_no_code_of_the_service() -> None:
    listed = subprocess.run(
        (sys.executable, "-c", LIST_MODULES), capture_output=True, text=True, check=True
    ).stdout.split()
    own = {name for name in listed if name.partition(".")[0] == "orchestrator"}
    assert "orchestrator.client" in own
    assert {name for name in own - {"orchestrator"} if not name.startswith(OWN)} == set()
    assert {name.partition(".")[0] for name in listed} & OF_THE_SERVER == set()
