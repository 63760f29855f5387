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
def test_an_invalid_retention_is_rejected(text: str) -> None:
    with pytest.raises(SettingsError, match="as in 30d"):
        Settings(retention=text)


def test_prices_are_read_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "orchestrator.toml").write_text(
        '[prices]\n"openai/mine" = {input_usd = 1.0, output_usd = 4.0}\n'
    )
    settings = Settings.load({}, tmp_path)
    assert settings.prices == {"openai/mine": {"input_usd": 1.0, "output_usd": 4.0}}
    with pytest.raises(SettingsError, match="must be a table, under"):
        Settings.load({"ORCHESTRATOR_PRICES": "cheap"}, Path("/nowhere"))


def test_workers_are_read_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "orchestrator.toml"
    file.write_text('[[workers]]\nname = "coder"\ntemperature = 0.2\n\n[[workers]]\nname = "writer"\n')
    settings = Settings.load({}, tmp_path)
    assert settings.workers == [{"name": "coder", "temperature": 0.2}, {"name": "writer"}]
    assert Settings.load({}, Path("/nowhere")).workers == []
    file.write_text('[workers]\nname = "coder"\n')
    with pytest.raises(SettingsError, match=r"must be a list of tables, each under \[\[workers\]\]"):
        Settings.load({}, tmp_path)


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("ORCHESTRATOR_SMAL_MODEL", "did you mean ORCHESTRATOR_SMALL_MODEL?"),
        ("ORCHESTRATOR_MODEL", "did you mean ORCHESTRATOR_BIG_MODEL?"),
        ("ORCHESTRATOR_MAX_CONCURENT_CALLS", "did you mean ORCHESTRATOR_MAX_CONCURRENT_CALLS?"),
        ("ORCHESTRATOR_rest_address", "known are ORCHESTRATOR_GRPC_ADDRESS, "),
        ("ORCHESTRATOR_SOURCES", "is no setting"),
        ("ORCHESTRATOR_PORT", "is no setting"),
    ],
)
def test_an_unknown_variable_is_rejected_with_the_nearest_setting(variable: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({"PATH": "/bin", variable: "8787"}, Path("/nowhere"))
    assert str(caught.value).startswith(f"{variable} is set, and is no setting")
    assert words in str(caught.value)


def test_empty_variables_and_those_of_kubernetes_services_are_ignored() -> None:
    foreign = {
        "ORCHESTRATOR_SERVICE_HOST": "10.0.0.1",
        "ORCHESTRATOR_SERVICE_PORT": "50051",
        "ORCHESTRATOR_SERVICE_PORT_GRPC": "50051",
        "ORCHESTRATOR_PORT": "tcp://10.0.0.1:50051",
        "ORCHESTRATOR_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "ORCHESTRATOR_PORT_50051_TCP_ADDR": "10.0.0.1",
        "ORCHESTRATOR_EDGE_SERVICE_HOST": "10.0.0.2",
    }
    assert Settings.load({**foreign, "ORCHESTRATOR_NOTHING": ""}, Path("/nowhere")) == Settings()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('rest_address = "8787"', "rest_address in {file} is '8787': it must be host:port"),
        ('grpc_address = "0.0.0.0"', "grpc_address in {file} is '0.0.0.0': it must be host:port"),
        ("insecure = 1", "insecure in {file} is 1: it must be a true or false"),
        ("log_level = 3", "log_level in {file} is 3: it must be a text in quotes"),
        ('log_level = "loud"', "log_level in {file} is 'loud': use debug"),
        ('max_active_instances = "many"', "max_active_instances in {file} is 'many': it must be a whole"),
        ("max_concurrent_calls = 0", "max_concurrent_calls in {file} is 0: it must be at least 1"),
        ("max_output_tokens = 0", "max_output_tokens in {file} is 0: it must be at least 1"),
        ("max_output_tokens = 1000001", "max_output_tokens in {file} is 1000001: it must be at most 1000000"),
        ('retention = "2w"', "retention in {file} is '2w': it must be a whole number with"),
        ('cors_origins = "*"', "cors_origins in {file} has '*': it must be origins"),
        ('engine = "temporal"', "engine in {file} is 'temporal'"),
        ('database = "postgresql://x/y"', "database in {file} must be a path"),
        ('smal_model = "openai/m"', "{file}: unknown setting 'smal_model': did you mean small_model?"),
    ],
)
def test_an_invalid_value_of_the_file_is_reported_for_the_file(line: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "orchestrator.toml"
    file.write_text(line)
    with pytest.raises(SettingsError) as caught:
        Settings.load({"ORCHESTRATOR_MAX_QUEUED_INSTANCES": "1"}, tmp_path)
    assert str(caught.value).startswith(words.format(file=file))


def test_the_database_is_in_the_users_data_folder_whatever_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    settings = Settings.load({}, tmp_path)
    assert (
        settings.database
        == settings.database_description
        == str(tmp_path / "share/orchestrator/orchestrator.db")
    )
    assert Settings().database == settings.database


def test_a_database_in_the_working_folder_is_used_and_reported(tmp_path: Path) -> None:
    found = tmp_path / "data/orchestrator.db"
    found.parent.mkdir()
    found.touch()
    settings = Settings.load({}, tmp_path)
    assert settings.database == str(found)
    assert settings.database_description == f"{found} (found in this folder)"
    (tmp_path / "orchestrator.toml").write_text('database = "mine.db"')
    assert Settings.load({}, tmp_path).database_description == "mine.db"
    chosen = Settings.load({"ORCHESTRATOR_DATABASE": str(found)}, tmp_path)
    assert chosen.database_description == str(found)


def test_without_a_home_folder_the_database_is_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platformdirs.user_data_path", lambda *_, **__: Path("~/.local/share/orchestrator"))
    assert Settings.load({}, tmp_path).database == str(tmp_path / "data/orchestrator.db")


def test_a_variable_overrides_the_file_and_a_flag_overrides_both(tmp_path: Path) -> None:
    (tmp_path / "orchestrator.toml").write_text(
        'big_model = "openai/file"\nsmall_model = "openai/file"\nlog_level = "debug"\nretention = "1d"\n'
        "max_active_instances = 1\n"
    )
    variables = {
        "ORCHESTRATOR_SMALL_MODEL": "openai/variable",
        "ORCHESTRATOR_LOG_LEVEL": "warning",
        "ORCHESTRATOR_RETENTION": "",
        "ORCHESTRATOR_MAX_ACTIVE_INSTANCES": "2",
    }
    settings = Settings.load(variables, tmp_path, log_level="error", small_model=None)
    assert settings.big_model == "openai/file"
    assert settings.small_model == "openai/variable"
    assert settings.log_level == "error"
    assert settings.retention == "1d"  # an empty variable counts as not set
    assert settings.max_active_instances == 2


def test_an_invalid_variable_is_reported_for_the_variable_whatever_the_file_holds(tmp_path: Path) -> None:
    (tmp_path / "orchestrator.toml").write_text('rest_address = "127.0.0.1:1"\nmax_concurrent_calls = 3\n')
    with pytest.raises(SettingsError, match=r"^ORCHESTRATOR_REST_ADDRESS is '8787': it must be host:port"):
        Settings.load({"ORCHESTRATOR_REST_ADDRESS": "8787"}, tmp_path)
    with pytest.raises(SettingsError, match=r"^ORCHESTRATOR_MAX_CONCURRENT_CALLS is 'many'"):
        Settings.load({"ORCHESTRATOR_MAX_CONCURRENT_CALLS": "many"}, tmp_path)


def test_a_faulty_setting_is_named_as_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "orchestrator.toml").write_text(
        'big_model = "openai/f"\nsmall_model = "openai/s"\nlog_level = "debug"\n'
    )
    variables = {"ORCHESTRATOR_BIG_MODEL": "openai/b", "ORCHESTRATOR_LOG_LEVEL": "info"}
    settings = Settings.load(variables, tmp_path, log_level="error", address="127.0.0.1:1", database=None)
    assert settings.name_of("big_model") == "ORCHESTRATOR_BIG_MODEL"
    assert settings.name_of("small_model") == f"small_model in {tmp_path}/orchestrator.toml"
    assert settings.name_of("log_level") == "--log-level"
    assert settings.name_of("grpc_address") == "--address"
    assert settings.name_of("database") == "ORCHESTRATOR_DATABASE"
    assert settings.name_of("workers[0].model") == "workers[0].model in orchestrator.toml"


@pytest.mark.parametrize(
    ("address", "example"),
    [
        ("http://127.0.0.1:50051", "127.0.0.1:50051"),
        ("https://localhost:50051/", "localhost:50051"),
        ("HTTP://[::1]:8787/-/ui/#/", "[::1]:8787"),
        ("grpc://127.0.0.1:50051", "127.0.0.1:50051"),
        ("dns:///127.0.0.1:50051", "127.0.0.1:50051"),
        ("http://localhost", "127.0.0.1:8787"),
        ("http://me:secret@localhost:1", "127.0.0.1:8787"),
        ("://", "127.0.0.1:8787"),
    ],
)
@pytest.mark.parametrize("name", ["ORCHESTRATOR_GRPC_ADDRESS", "ORCHESTRATOR_REST_ADDRESS"])
def test_an_address_with_a_scheme_is_rejected_with_the_mend(
    tmp_path: Path, name: str, address: str, example: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({name: address}, tmp_path)
    assert str(caught.value) == (
        f"{name} is {address!r}: an address is host:port without a scheme, as in {example}"
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tls_cert": "a.pem"}, "ORCHESTRATOR_TLS_CERT is set, and TLS needs ORCHESTRATOR_TLS_KEY too"),
        ({"tls_key": "a.key"}, "ORCHESTRATOR_TLS_KEY is set, and TLS needs ORCHESTRATOR_TLS_CERT too"),
        ({"tls_client_ca": "a.pem"}, "needs ORCHESTRATOR_TLS_CERT and ORCHESTRATOR_TLS_KEY too"),
    ],
)
def test_half_of_what_tls_needs_is_rejected(given: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Settings(**given)


def test_without_certificates_there_is_no_tls() -> None:
    assert Settings().tls is None
    files = Settings(tls_cert="a.pem", tls_key="a.key").tls
    assert files is not None
    assert (files.certificate, files.key, files.client_ca) == (Path("a.pem"), Path("a.key"), None)


def test_a_negative_limit_of_requests_is_rejected() -> None:
    with pytest.raises(SettingsError, match="ORCHESTRATOR_MAX_REQUESTS_PER_SECOND"):
        Settings(max_requests_per_second=-1)


def test_a_token_is_in_no_representation_of_the_settings() -> None:
    settings = Settings.load({"ORCHESTRATOR_TOKEN": "orc_secret"}, Path("/nowhere"))
    assert settings.client_token == "orc_secret"
    assert "orc_secret" not in repr(settings)


def test_the_token_that_is_given_last_counts(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("orc_file\n")
    (tmp_path / "orchestrator.toml").write_text('token = "orc_toml"\n')
    file = str(tmp_path / "token")
    assert Settings.load({}, tmp_path).client_token == "orc_toml"
    assert Settings.load({"ORCHESTRATOR_TOKEN_FILE": file}, tmp_path).client_token == "orc_file"
    both = {"ORCHESTRATOR_TOKEN_FILE": file, "ORCHESTRATOR_TOKEN": "orc_variable"}
    assert Settings.load(both, tmp_path).client_token == "orc_variable"
    assert (
        Settings.load({"ORCHESTRATOR_TOKEN": "orc_variable"}, tmp_path, token_file=file).client_token
        == "orc_file"
    )


@pytest.mark.parametrize("content", ["", "\n", "two words", "é", None])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    settings = Settings.load({}, Path("/nowhere"), token_file=str(tmp_path / "token"))
    with pytest.raises(SettingsError, match="--token-file: "):
        _ = settings.client_token


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"AUTH_OIDC_ISSUER": "https://id.example.com"}, "ORCHESTRATOR_AUTH_OIDC_AUDIENCE is not"),
        ({"AUTH_OIDC_AUDIENCE": "orchestrator"}, "ORCHESTRATOR_AUTH_OIDC_ISSUER is not"),
    ],
)
def test_an_issuer_goes_with_an_audience(variables: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Settings.load({f"ORCHESTRATOR_{name}": value for name, value in variables.items()}, Path("/nowhere"))


TLS = {"tls_cert": "a.pem", "tls_key": "a.key"}
OIDC = {"auth_oidc_issuer": "https://id.example.com", "auth_oidc_audience": "orchestrator"}


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.2:1", "example.com:1", "[fe80::1]:1"])
@pytest.mark.parametrize("name", ["grpc_address", "rest_address"])
def test_an_address_that_others_reach_needs_tls_and_credentials(name: str, address: str) -> None:
    where = {name: address}
    for given, missing in (
        ({}, "set ORCHESTRATOR_TLS_CERT and ORCHESTRATOR_TLS_KEY for TLS, and ORCHESTRATOR_AUTH_TOKENS_FILE"),
        (TLS, "set ORCHESTRATOR_AUTH_TOKENS_FILE for tokens;"),
        ({"auth_tokens_file": "t.toml"}, "set ORCHESTRATOR_TLS_CERT and ORCHESTRATOR_TLS_KEY for TLS;"),
        (OIDC, "for TLS; or listen on loopback only, as in 127.0.0.1:1;"),
    ):
        with pytest.raises(SettingsError) as caught:
            Settings(**where, **given).check_exposure(edge=True)
        assert str(caught.value).startswith(
            f"ORCHESTRATOR_{name.upper()} is {address!r}, where others reach it: "
        )
        assert missing in str(caught.value)
    Settings(**where, **TLS, auth_tokens_file="t.toml").check_exposure(edge=True)
    Settings(**where, **TLS, **OIDC).check_exposure(edge=True)
    Settings(**where, insecure=True).check_exposure(edge=True)
    if name == "rest_address":
        Settings(**where).check_exposure(edge=False)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1"])
def test_loopback_needs_neither(address: str) -> None:
    Settings(grpc_address=address, rest_address=address).check_exposure(edge=True)


@pytest.mark.parametrize(("text", "insecure"), [("1", True), ("TRUE", True), ("0", False), ("off", False)])
def test_a_switch_is_read_as_people_write_it(text: str, insecure: bool) -> None:
    assert Settings.load({"ORCHESTRATOR_INSECURE": text}, Path("/nowhere")).insecure is insecure
    with pytest.raises(SettingsError, match="ORCHESTRATOR_INSECURE is 'maybe': it must be 1 or 0"):
        Settings.load({"ORCHESTRATOR_INSECURE": "maybe"}, Path("/nowhere"))


def test_a_clients_certificate_goes_with_its_key_and_an_authority() -> None:
    with pytest.raises(SettingsError, match="TLS needs ORCHESTRATOR_TLS_CA too"):
        Settings(tls_client_cert="a.pem")
    with pytest.raises(SettingsError, match="go together: set both"):
        Settings(tls_client_cert="a.pem", tls_ca="ca.pem")
