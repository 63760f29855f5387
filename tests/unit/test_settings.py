from pathlib import Path

import pytest

from orchestrator.errors import SettingsError
from orchestrator.settings import Settings


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 30 * 86400), ("12h", 43200), ("45m", 2700), ("90s", 90), ("", None)]
)
def test_retention_is_a_number_with_a_unit(text: str, seconds: int | None) -> None:
    assert Settings(retention=text).retention_s == seconds


@pytest.mark.parametrize("text", ["30", "d", "0d", "-1d", "1.5h", "30 d", "2w", "²d"])
def test_a_retention_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="as in 30d"):
        Settings(retention=text)


def test_prices_come_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "orchestrator.toml").write_text(
        '[prices]\n"openai/mine" = {input_usd = 1.0, output_usd = 4.0}\n'
    )
    settings = Settings.load({}, tmp_path)
    assert settings.prices == {"openai/mine": {"input_usd": 1.0, "output_usd": 4.0}}
    with pytest.raises(SettingsError, match="must be a dict"):
        Settings.load({"ORCHESTRATOR_PRICES": "cheap"}, Path("/nowhere"))


def test_workers_come_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "orchestrator.toml"
    file.write_text('[[workers]]\nname = "coder"\ntemperature = 0.2\n\n[[workers]]\nname = "writer"\n')
    settings = Settings.load({}, tmp_path)
    assert settings.workers == [{"name": "coder", "temperature": 0.2}, {"name": "writer"}]
    assert Settings.load({}, Path("/nowhere")).workers == []
    file.write_text('[workers]\nname = "coder"\n')
    with pytest.raises(SettingsError, match=r"must be a list of tables, each under \[\[workers\]\]"):
        Settings.load({}, tmp_path)
