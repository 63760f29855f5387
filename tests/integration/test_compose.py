import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPOSE = Path(sys.executable).with_name("docker-compose")


def test_the_compose_file_is_valid() -> None:
    checked = subprocess.run(
        [COMPOSE, "--file", ROOT / "docker-compose.yml", "config", "--quiet"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr
