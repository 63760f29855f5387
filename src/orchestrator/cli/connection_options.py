"""The options by which commands reach a service that asks for credentials.

They are the same for every command that has `--address`, so they are added to all of them in one place.
A token itself is no option: what is typed is seen in the list of processes and in the shell's history.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Annotated, Any, Final

import typer

from orchestrator.settings import Settings

_GIVEN: Final[ContextVar[Mapping[str, str | None]]] = ContextVar("given", default={})  # noqa: B039  never changed
"""The options of the command that runs."""

_OPTIONS: Final[Mapping[str, Any]] = {
    "token_file": Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The file that holds the token to send; or set ORCHESTRATOR_TOKEN.",
            show_default=False,
        ),
    ],
    "tls_ca": Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Speak TLS, with a service whose certificate that authority has signed; or `system`.",
            show_default=False,
        ),
    ],
    "tls_client_cert": Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The certificate to show, where the service asks for one.",
            show_default=False,
        ),
    ],
    "tls_client_key": Annotated[
        str | None, typer.Option(metavar="PATH", help="Its key.", show_default=False)
    ],
}
_SERVERS: Final = ("up", "serve")
"""Commands whose address is where they listen."""


def load_settings(**flags: Any) -> Settings:
    """Load the settings with the flags and the options of the command; raise SettingsError."""
    return Settings.load(**{**flags, **_GIVEN.get()})


def add_to_all(app: typer.Typer) -> None:
    """Add the options to every command that talks to a service."""
    for command in app.registered_commands:
        name = getattr(command.callback, "__name__", "")
        if (
            command.callback
            and name not in _SERVERS
            and "address" in inspect.signature(command.callback).parameters
        ):
            command.callback = _with_options(command.callback)
    for group in app.registered_groups:
        if group.typer_instance:
            add_to_all(group.typer_instance)


def _with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def wrapped(**arguments: Any) -> Any:
        _GIVEN.set({name: arguments.pop(name) for name in _OPTIONS})
        return command(**arguments)

    signature = inspect.signature(command)
    wrapped.__signature__ = signature.replace(parameters=[*_extended(signature)])  # type: ignore[attr-defined]
    return wrapped


def _extended(signature: inspect.Signature) -> Iterator[inspect.Parameter]:
    for parameter in signature.parameters.values():
        yield parameter
        if parameter.name == "address":
            for name, annotation in _OPTIONS.items():
                yield inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
                )
