"""The content of envoy.yaml, and the configuration rendered from it."""

import json
import random
import re
import runpy
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import edge
from orchestrator.errors import SettingsError
from orchestrator.settings import Settings

ROOT = Path(__file__).parents[2]


ADDRESSES = {"rest_address": "127.0.0.1:8787", "grpc_address": "127.0.0.1:50051"}
HTTP_CONNECTION_MANAGER = "envoy.filters.network.http_connection_manager"


def as_it_stands() -> Any:
    return yaml.safe_load((ROOT / "envoy.yaml").read_text())


def lists_in(value: Any) -> Iterator[tuple[str, list[Any]]]:
    """All lists of a configuration with their keys, each once: what is an alias in the file is one object."""
    seen: set[int] = set()
    pending = [("", value)]
    while pending:
        key, each = pending.pop()
        if not isinstance(each, dict | list) or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, list):
            yield key, each
            pending += [(key, item) for item in each]
        else:
            pending += each.items()


def without_order(value: Any) -> Any:
    match value:
        case dict():
            return {key: without_order(each) for key, each in value.items()}
        case list():
            return sorted(map(without_order, value), key=partial(json.dumps, sort_keys=True))
    return value


def render_from(config: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, **settings: Any) -> Any:
    """Render another configuration than that of envoy.yaml."""
    file = folder / "envoy.yaml"
    file.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(edge, "config_file", lambda: file)
    return yaml.safe_load(edge.render(**{**ADDRESSES, **settings}))


def test_the_packaged_file_is_valid() -> None:
    command = [str(edge.find_envoy()), "--mode", "validate", "-c", "envoy.yaml", "--log-level", "warning"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "configuration 'envoy.yaml' OK"
    assert done.stderr == "", "no deprecated options"


def test_streams_and_waits_have_long_idle_timeouts() -> None:
    listener = as_it_stands()["static_resources"]["listeners"][0]
    connection_manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    routes = connection_manager["route_config"]["virtual_hosts"][0]["routes"]
    timeouts = {
        route["match"]["path"].rpartition("/")[2]: (route["route"]["timeout"], route["route"]["idle_timeout"])
        for route in routes
        if "path" in route["match"] and "route" in route
    }
    assert timeouts == {"StreamServerSentEvents": ("0s", "0s"), "WaitInstance": ("3660s", "3660s")}


def test_rendering_changes_only_the_addresses_and_the_path() -> None:
    text = edge.render(rest_address="127.0.0.1:8787", grpc_address="127.0.0.1:50051")
    rendered = yaml.safe_load(text.replace(f"{ROOT}/", ""))
    assert rendered == as_it_stands()
    moved = edge.render(rest_address="[::1]:1234", grpc_address="127.0.0.2:4321")
    assert "address: ::1\n" in moved.replace("'", "")
    assert "port_value: 1234" in moved
    assert "address: 127.0.0.2\n" in moved
    assert "port_value: 4321" in moved


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_entries_is_irrelevant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    settings: dict[str, Any] = {
        "rest_address": "127.0.0.3:1234",
        "grpc_address": "127.0.0.2:4321",
        "origins": ("https://app.example.com",),
        "hosts": ("app.example.com",),
    }
    expected = yaml.safe_load(edge.render(**settings))
    config = as_it_stands()
    for _, entries in lists_in(config):
        random.Random(seed).shuffle(entries)
    assert without_order(render_from(config, monkeypatch, tmp_path, **settings)) == without_order(expected)


def test_other_entries_before_ours_are_left_unchanged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = as_it_stands()
    resources = config["static_resources"]
    address = {"socket_address": {"address": "127.0.0.9", "port_value": 9}}
    resources["listeners"].insert(0, {"name": "metrics", "address": address})
    resources["clusters"].insert(0, {"name": "metrics", "load_assignment": {"endpoints": []}})
    rendered = render_from(config, monkeypatch, tmp_path, rest_address="127.0.0.3:1234")["static_resources"]
    assert rendered["listeners"][0]["address"] == address
    assert rendered["listeners"][1]["address"]["socket_address"]["port_value"] == 1234
    assert rendered["clusters"][0] == resources["clusters"][0]


NAMES = [
    ("listeners", "rest"),
    ("filter_chains", "rest"),
    ("filters", HTTP_CONNECTION_MANAGER),
    ("http_filters", "envoy.filters.http.rbac"),
    ("virtual_hosts", "orchestrator"),
    ("clusters", "orchestrator"),
]


@pytest.mark.parametrize(("key", "name"), NAMES)
def test_a_missing_or_repeated_name_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, name: str
) -> None:
    config = as_it_stands()
    (entries,) = (
        entries
        for of, entries in lists_in(config)
        if of == key and any(entry.get("name") == name for entry in entries)
    )
    (entry,) = (entry for entry in entries if entry.get("name") == name)
    entries.append(entry)
    with pytest.raises(SettingsError, match=f"envoy.yaml has 2 {key} with the name '{re.escape(name)}'"):
        render_from(config, monkeypatch, tmp_path)
    entry["name"] = "another"
    with pytest.raises(SettingsError, match=f"envoy.yaml has no {key} with the name '{re.escape(name)}'"):
        render_from(config, monkeypatch, tmp_path)


@pytest.mark.parametrize(("policy", "header"), [("foreign_host", ":authority"), ("foreign_origin", "origin")])
def test_a_missing_policy_or_expression_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, policy: str, header: str
) -> None:
    config = as_it_stands()
    (filters,) = (entries for key, entries in lists_in(config) if key == "http_filters")
    (rbac,) = (each for each in filters if each["name"] == "envoy.filters.http.rbac")
    policies = rbac["typed_config"]["rules"]["policies"]
    policies[policy]["permissions"] = [{"any": True}]
    with pytest.raises(SettingsError, match=f"no safe_regex for the header '{header}'.*'{policy}'"):
        render_from(config, monkeypatch, tmp_path)
    del policies[policy]
    with pytest.raises(SettingsError, match=f"envoy.yaml has no '{policy}'"):
        render_from(config, monkeypatch, tmp_path)


def test_the_routes_of_the_pages_files_are_as_make_page_routes_writes_them() -> None:
    with_page_routes = runpy.run_path(str(ROOT / "build_hooks/page_routes.py"))["with_page_routes"]
    text = (ROOT / "envoy.yaml").read_text()
    assert with_page_routes(text) == text, "a file of the page has come or gone: make page-routes"


def test_a_host_without_an_address_names_its_setting() -> None:
    with pytest.raises(SettingsError, match=r"ORCHESTRATOR_REST_ADDRESS.*nowhere\.invalid"):
        edge.render(rest_address="nowhere.invalid:8787", grpc_address="127.0.0.1:50051")


def test_configured_origins_are_matched_literally_in_every_place() -> None:
    origins = ("https://app.example.com",)
    text = edge.render(rest_address="127.0.0.1:1", grpc_address="127.0.0.1:2", origins=origins)
    found: list[str] = []

    def look(value: Any) -> None:
        match value:
            case {"safe_regex": {"regex": str(regex)}} if "https?://" in regex:
                found.append(regex)
            case dict():
                for each in value.values():
                    look(each)
            case list():
                for each in value:
                    look(each)

    look(yaml.safe_load(text))
    assert len(found) == 3
    for regex in found:
        assert re.fullmatch(regex, "https://app.example.com")
        assert re.fullmatch(regex, "http://localhost:3000")
        assert not re.fullmatch(regex, "https://app-example.com")


def hosts_of(text: str) -> str:
    """The expression of the hosts that may be asked for, which must be the same in every place."""
    (regex,) = {line.strip() for line in text.splitlines() if "127(" in line}
    found: str = yaml.safe_load(regex)["regex"]
    return found


def test_configured_hosts_are_matched_literally_beside_this_machines() -> None:
    hosts = ("app.example.com", "[2001:db8::7]", "localhost")
    text = edge.render(rest_address="127.0.0.1:1", grpc_address="127.0.0.1:2", hosts=hosts)
    regex = hosts_of(text)
    for good in (*hosts, "APP.example.com:443", "app.example.com.", "127.0.0.1:1", "[::1]"):
        assert re.fullmatch(regex, good), good
    for bad in (
        "app-example.com",
        "x.app.example.com",
        "app.example.com.evil.test",
        "[2001:db8::8]",
        "a|",
        "",
    ):
        assert not re.fullmatch(regex, bad), bad


def test_the_rest_address_is_a_host_name_of_this_machine() -> None:
    text = edge.render(rest_address="192.0.2.7:8787", grpc_address="127.0.0.1:2")
    assert re.fullmatch(hosts_of(text), "192.0.2.7:8787")
    assert not re.fullmatch(hosts_of(text), "192.0.2.8:8787")


@pytest.mark.parametrize(
    "hosts", ["*", "https://app.example.com", "app.example.com:443", "a.example/", "*.a.example", "a b"]
)
def test_an_invalid_host_is_rejected_with_the_settings_name(hosts: str) -> None:
    with pytest.raises(SettingsError, match="ORCHESTRATOR_ALLOWED_HOSTS"):
        Settings.load({"ORCHESTRATOR_ALLOWED_HOSTS": hosts}, Path("/nowhere"))


def test_hosts_are_parsed_from_one_setting() -> None:
    environment = {"ORCHESTRATOR_ALLOWED_HOSTS": "App.example.com, host.docker.internal,[2001:db8::7],"}
    settings = Settings.load(environment, Path("/nowhere"))
    assert settings.hosts == ("app.example.com", "host.docker.internal", "[2001:db8::7]")
    assert Settings.load({}, Path("/nowhere")).hosts == ()


@pytest.mark.parametrize(
    "origins",
    ["*", "app.example.com", "https://app.example.com/", "https://a.example, null", "https://*.a.example"],
)
def test_an_invalid_origin_is_rejected_with_the_settings_name(origins: str) -> None:
    with pytest.raises(SettingsError, match="ORCHESTRATOR_CORS_ORIGINS"):
        Settings.load({"ORCHESTRATOR_CORS_ORIGINS": origins}, Path("/nowhere"))


def test_origins_are_parsed_from_one_setting() -> None:
    environment = {"ORCHESTRATOR_CORS_ORIGINS": "https://app.example.com, http://192.168.0.7:3000,"}
    settings = Settings.load(environment, Path("/nowhere"))
    assert settings.origins == ("https://app.example.com", "http://192.168.0.7:3000")
    assert Settings.load({}, Path("/nowhere")).origins == ()
