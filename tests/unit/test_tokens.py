import asyncio
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.auth import last_used, token_file, tokens
from orchestrator.auth.caller import Caller, Role
from orchestrator.auth.token_file import Token
from orchestrator.auth.token_store import TokenStore
from orchestrator.core.quota import Quota
from orchestrator.errors import SettingsError, UnauthenticatedError

HASH = tokens.digest("x")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def add(file: Path, name: str = "ci", *, expires: datetime | None = None, role: Role = Role.WRITE) -> str:
    text = tokens.generate()
    token_file.add(file, Token(name, "acme", role, tokens.digest(text), datetime.now(UTC), expires))
    return text


def rejection(store: TokenStore, text: str) -> str:
    with pytest.raises(UnauthenticatedError) as caught:
        store.authenticate(text)
    assert caught.value.reason == "TOKEN_INVALID"
    return str(caught.value)


def test_a_token_has_a_prefix_256_random_bits_and_a_checksum() -> None:
    made = {tokens.generate() for _ in range(100)}
    assert len(made) == 100
    for text in made:
        assert re.fullmatch(r"orc_[0-9a-f]{72}", text)
        assert tokens.is_well_formed(text)
        assert not tokens.is_well_formed(text[:-1])
        assert not tokens.is_well_formed(text.replace("orc_", "abc_"))
        assert not tokens.is_well_formed(text[:20] + ("0" if text[20] != "0" else "1") + text[21:])


async def test_the_file_holds_a_hash_alone_and_only_its_owner_reads_it(file: Path) -> None:
    text = add(file, expires=datetime.now(UTC) + timedelta(days=90))
    assert text not in file.read_text()
    assert text[4:-8] not in file.read_text()
    assert tokens.digest(text) in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    store = TokenStore.open(file)
    assert store.authenticate(text) == Caller("ci", "acme", Role.WRITE)
    await store.aclose()


def test_what_else_the_file_holds_stays(file: Path) -> None:
    written = '# by hand\n[tenants.acme]  # ours\nmax_active = 3\n\n[tenants."*"]\nmax_queued = 7\n'
    file.write_text(written)
    file.chmod(0o600)
    add(file)
    add(file, "second")
    token_file.remove(file, "ci")
    text = file.read_text()
    assert "# by hand" in text
    assert "# ours" in text
    loaded = token_file.load(file)
    assert [token.name for token in loaded.tokens] == ["second"]
    assert loaded.quota("acme") == Quota(max_active=3)
    assert loaded.quota("other") == Quota(max_queued=7)


def test_a_name_is_given_once_and_a_missing_one_cannot_be_revoked(file: Path) -> None:
    add(file)
    before = file.read_bytes()
    with pytest.raises(SettingsError, match="has a token 'ci' already"):
        add(file)
    with pytest.raises(SettingsError, match="has no token 'other'"):
        token_file.remove(file, "other")
    assert file.read_bytes() == before
    assert not list(file.parent.glob(".tokens.toml.?*[!k]"))


def test_writers_at_the_same_time_lose_nothing(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: add(file, f"t{number}"), range(24)))
        list(pool.map(lambda number: token_file.remove(file, f"t{number}"), range(0, 24, 2)))
    assert {token.name for token in token_file.load(file).tokens} == {f"t{n}" for n in range(1, 24, 2)}


def test_a_link_to_the_file_stays_a_link(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    add(link)
    assert link.is_symlink()
    assert len(token_file.load(file).tokens) == 1


async def test_a_changed_file_is_read_again_within_a_second(file: Path) -> None:
    first, clock = add(file), Clock()
    store = TokenStore.open(file, clock)
    second = add(file, "second")
    token_file.remove(file, "ci")
    store.authenticate(first)  # it is not looked at more often
    clock.now_s += 1
    assert store.authenticate(second).name == "second"
    assert "was revoked" in rejection(store, first)
    await store.aclose()


async def test_a_mistake_in_the_file_locks_nobody_out_and_a_missing_file_does(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, clock = add(file), Clock()
    store = TokenStore.open(file, clock)
    good = file.read_text()
    file.write_text("[[tokens]\n")
    clock.now_s += 1
    store.authenticate(text)
    assert "the tokens stay as they were" in caplog.text
    file.unlink()
    clock.now_s += 1
    rejection(store, text)
    file.write_text(good)
    file.chmod(0o600)
    clock.now_s += 1
    store.authenticate(text)
    await store.aclose()


async def test_an_expired_token_is_rejected(file: Path) -> None:
    text = add(file, expires=datetime.now(UTC) - timedelta(seconds=1))
    store = TokenStore.open(file)
    assert "has expired" in rejection(store, text)
    await store.aclose()


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1], lambda t: t + "0", lambda t: t.upper(), lambda _: "", str.title]
)
async def test_what_is_nearly_a_token_is_none(file: Path, change: "type[str]") -> None:
    text = add(file)
    store = TokenStore.open(file)
    assert "is not whole" in rejection(store, change(text))
    assert "was revoked, or is another service's" in rejection(store, tokens.generate())
    assert "is not whole" in rejection(store, tokens.digest(text)), "the hash itself opens nothing"
    await store.aclose()


async def test_the_last_use_is_kept_beside_the_file(file: Path) -> None:
    text = add(file)
    store = TokenStore.open(file)
    before = datetime.now(UTC)
    store.authenticate(text)
    await store.aclose()
    used = last_used.read(last_used.path_beside(file))
    assert before - timedelta(seconds=1) < used[tokens.digest(text)] <= datetime.now(UTC)


async def test_where_the_last_use_cannot_be_written_calls_go_on(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = add(file)
    store = TokenStore.open(file)

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", fail)
    caplog.set_level("INFO")
    assert store.authenticate(text).name == "ci"
    await asyncio.wait_for(store.aclose(), 10)
    assert "is not recorded" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[tokens]\n", "cannot be read"),
        ("tokens = 3", "tokens must be a list of tables"),
        ("token = []", "unknown key 'token'"),
        ('[[tokens]]\nname = "a"\n', "sha256 must be"),
        (f'[[tokens]]\nname = "a b"\nsha256 = "{HASH}"\nrole = "read"', "name is 'a b'"),
        (f'[[tokens]]\nsha256 = "{HASH}"\nrole = "read"', "name is ''"),
        (f'[[tokens]]\nname = "a"\nsha256 = "{HASH}"\nrole = "root"', "one of read, write, admin, metrics"),
        (f'[[tokens]]\nname = "a"\nsha256 = "{HASH}"\n', "role is ''"),
        (f'[[tokens]]\nname = 3\nsha256 = "{HASH}"\n', "name must be a text"),
        (
            f'[[tokens]]\nname = "a"\nsha256 = "{HASH}"\nrole = "read"\nexpires = "soon"',
            "expires must be a time",
        ),
        (
            f'[[tokens]]\nname = "a"\nsha256 = "{HASH}"\nrole = "read"\nexpire = 2026-01-01',
            "unknown key 'expire'",
        ),
        (2 * f'[[tokens]]\nname = "a"\nsha256 = "{HASH}"\nrole = "read"\n', "two tokens are called 'a'"),
        ("[tenants.acme]\nmax_runs = 3", "unknown key 'max_runs'"),
        ("[tenants.acme]\nmax_active = -1", "a whole number from 0"),
        ("[tenants.acme]\nmax_active = 1.5", "a whole number from 0"),
        ("[tenants.acme]\nmax_cost_usd_per_day = inf", "a number from 0"),
        ("[tenants.acme]\nmax_cost_usd_per_day = true", "a number from 0"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_the_place(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(SettingsError) as caught:
        TokenStore.open(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_others_can_write_is_refused(file: Path) -> None:
    add(file)
    for mode in (0o620, 0o602, 0o666):
        file.chmod(mode)
        with pytest.raises(SettingsError, match="can be written by others"):
            TokenStore.open(file)
    file.chmod(0o644)  # hashes may be read
    TokenStore.open(file)


def test_a_file_that_is_not_there_is_refused(file: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        TokenStore.open(file)
    with pytest.raises(SettingsError, match="cannot be changed"):
        add(file / "below")
    assert list(file.parent.iterdir()) == []
