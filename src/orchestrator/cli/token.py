"""`orchestrator token`: make, list and revoke the tokens of a service."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer

from orchestrator.auth import last_used, token_file, tokens
from orchestrator.auth.caller import Role
from orchestrator.auth.token_file import Token
from orchestrator.cli import options as opt
from orchestrator.cli.exit_codes import UsageError, reporting_errors
from orchestrator.cli.options import examples
from orchestrator.installation import requires
from orchestrator.settings import Settings

app = typer.Typer(no_args_is_help=True)

_MOST_DAYS: Final = 36_500
File: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--file",
        metavar="PATH",
        help="The file of tokens. [default: ORCHESTRATOR_AUTH_TOKENS_FILE]",
        show_default=False,
    ),
]
Name: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", help="Whose it is, as in ann or ci.")]


@app.command(
    epilog=examples(
        "orchestrator token new ann --tenant acme --role write --expires 90d",
        "orchestrator token new prometheus --role metrics",
    )
)
@reporting_errors
def new(
    name: Name,
    *,
    tenant: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Whose instances it sees, and owns what it creates.", show_default=False
        ),
    ] = None,
    role: Annotated[
        Role,
        typer.Option(
            help="What it may do: look; also create and steer; also delete, and all tenants; or metrics."
        ),
    ],
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="After how long it ends, as in 90d or 12h. [default: never]",
            show_default=False,
        ),
    ] = None,
    file: File = None,
    as_json: opt.Json = False,
) -> None:
    """Make a token and print it; it is shown this once, the file holds its hash."""
    path = _path(file)
    token_file.check_name("name", name, "the token")
    if tenant is None and role is not Role.METRICS:
        raise UsageError("name with --tenant whose instances it is to see, as in --tenant acme")
    if tenant:
        token_file.check_name("tenant", tenant, "the token")
    created = datetime.now(UTC).replace(microsecond=0)
    text = tokens.generate()
    token = Token(name, tenant or "", role, tokens.digest(text), created, _end(created, expires))
    with requires("server", "`orchestrator token`"):
        token_file.add(path, token)
    if as_json:
        typer.echo(json.dumps(_shown(token) | {"token": text}))
        return
    until = f"until {token.expires:%Y-%m-%d %H:%M} UTC" if token.expires else "until it is revoked"
    typer.echo(f"{name} may {role.value} {until}; this is the token, and it is not shown again:", err=True)
    typer.echo(text)


@app.command("list", epilog=examples("orchestrator token list"))
@reporting_errors
def list_(*, file: File = None, as_json: opt.Json = False) -> None:
    """List the tokens: whose they are, what they may do, when they end and when they were used last."""
    path = _path(file)
    found = token_file.load(path).tokens if path.exists() else ()
    used = last_used.read(last_used.path_beside(path))
    if as_json:
        shown = [_shown(token) | {"lastUsed": _time(used.get(token.sha256))} for token in found]
        typer.echo(json.dumps({"tokens": shown}))
        return
    if not found:
        typer.echo(f"{path} has no tokens: make one with `orchestrator token new`", err=True)
        return
    now = datetime.now(UTC)
    rows = [("NAME", "TENANT", "ROLE", "CREATED", "EXPIRES", "LAST USED")]
    for token in found:
        ends = "expired" if token.is_expired(now) else _day(token.expires) or "never"
        last = used.get(token.sha256)
        rows.append(
            (
                *(token.name, token.tenant or "-", token.role.value, _day(token.created) or "-", ends),
                f"{last:%Y-%m-%d %H:%M}" if last else "never",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@app.command(epilog=examples("orchestrator token revoke ann"))
@reporting_errors
def revoke(name: Name, *, file: File = None, as_json: opt.Json = False) -> None:
    """Revoke a token: a running service stops taking it within a second or two."""
    with requires("server", "`orchestrator token`"):
        token_file.remove(_path(file), name)
    typer.echo(json.dumps({"name": name}) if as_json else f"{name} is revoked")


def _path(file: Path | None) -> Path:
    """Return the file of tokens; raise UsageError where none is named."""
    path = str(file) if file else Settings.load().auth_tokens_file
    if not path:
        raise UsageError("name the file of tokens: set ORCHESTRATOR_AUTH_TOKENS_FILE, or give --file")
    return Path(path)


def _end(created: datetime, expires: str | None) -> datetime | None:
    if expires is None:
        return None
    seconds = opt.read_duration(expires)
    if not 0 < seconds <= _MOST_DAYS * 86400:
        raise UsageError(f"--expires is {expires!r}: it must be over 0 and at most {_MOST_DAYS}d")
    return created + timedelta(seconds=seconds)


def _shown(token: Token) -> dict[str, str | None]:
    return {
        "name": token.name,
        "tenant": token.tenant,
        "role": token.role.value,
        "created": _time(token.created),
        "expires": _time(token.expires),
    }


def _time(time: datetime | None) -> str | None:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z") if time else None


def _day(time: datetime | None) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d}" if time else ""
