from pathlib import Path

from orchestrator.cli.follow import resume_command, settings_options
from orchestrator.settings import Settings


def test_a_command_to_paste_has_exactly_the_flags_that_it_needs(tmp_path: Path) -> None:
    (tmp_path / "orchestrator.toml").write_text('rest_address = "127.0.0.1:1"')
    settings = Settings.load(
        {"ORCHESTRATOR_GRPC_ADDRESS": "127.0.0.1:2"}, tmp_path, database="my data/x.db", big_model=None
    )
    names = {name: f"--{name}" for name in ("grpc_address", "rest_address", "database", "big_model")}
    assert settings_options(settings, **names) == " --grpc_address 127.0.0.1:2 --database 'my data/x.db'"
    assert resume_command("a", settings, live=True).endswith(" events a --follow -v --address 127.0.0.1:2")
    assert resume_command("a", Settings(), live=False).endswith(" events a --follow")
