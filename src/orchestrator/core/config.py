"""An instance's configuration: its defaults, and what a client may ask for."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from orchestrator.core import limits, plan
from orchestrator.core import workers as catalogue
from orchestrator.core.continuation import DEFAULT_CONTINUATIONS
from orchestrator.core.instance import subtask_of
from orchestrator.core.merging import DEFAULT_CHARACTERS
from orchestrator.errors import InvalidArgumentError
from orchestrator.v1 import instance_pb2 as pb

MAX_CRASHES: Final = 3
"""Of an instance that says nothing else; those recorded before there was such a limit have this one too."""


def default(
    big_model: str,
    small_model: str,
    workers: Iterable[pb.Worker] = (),
    *,
    max_output_tokens: int = 8192,
    max_crashes: int = MAX_CRASHES,
) -> pb.InstanceConfig:
    """Return the configuration of an instance whose client asks for nothing."""
    return pb.InstanceConfig(
        big_model=big_model,
        small_model=small_model,
        max_subtasks=16,
        max_parallel_subtasks=8,
        max_output_tokens=max_output_tokens,
        max_continuations=DEFAULT_CONTINUATIONS,
        retry=pb.RetryPolicy(
            max_attempts=6,
            initial_delay=Duration(seconds=1),
            max_delay=Duration(seconds=60),
            multiplier=2,
            attempt_timeout=Duration(seconds=600),
            max_crashes=max_crashes,
        ),
        max_input_characters=DEFAULT_CHARACTERS,
        tolerated_failures=0,
        review_plan=False,
        workers=workers,
    )


def models(config: pb.InstanceConfig, workers: Iterable[pb.Worker]) -> Mapping[str, str]:
    """Return each `provider/model` that an instance may call, by the path of the field that names it."""
    own = {f"workers[{number}].model": worker.model for number, worker in enumerate(workers)}
    named = {path: model for path, model in own.items() if model}
    return {"big_model": config.big_model, "small_model": config.small_model, **named}


@dataclass(frozen=True, slots=True)
class Changes:
    """What a client changes of a recorded configuration; see `read_changes`."""

    values: pb.InstanceConfig
    """What replaces what is recorded."""
    cleared: Sequence[str] = ()
    """The paths of the fields that go back to the default, as in `budget.max_tokens`."""
    defaults: pb.InstanceConfig = field(default_factory=pb.InstanceConfig)
    """The configuration of an instance whose client asks for nothing."""

    def apply(self, recorded: pb.InstanceConfig, paths: Collection[str] = ()) -> pb.InstanceConfig:
        """Return the changed configuration of an instance with input files at `paths`.

        Raise InvalidArgumentError (CONFIG_INVALID, PLAN_INVALID).
        """
        base = pb.InstanceConfig()
        base.CopyFrom(recorded)
        for path in self.cleared:
            owner, name = _owner_and_field(base, path)
            owner.ClearField(name)
            _copy_field(path, self.defaults, base)
        if "workers" in self.cleared:
            base.catalogue = self.defaults.catalogue
        if not base.budget.ListFields():
            base.ClearField("budget")
        return resolve(self.values, base, paths)


def read_changes(
    config: pb.InstanceConfig, mask: Iterable[str] = (), defaults: pb.InstanceConfig | None = None
) -> Changes:
    """Read a configuration and the paths of its fields that a client names; see AIP-134.

    Without paths, the fields that are set replace what is recorded. With some, exactly those fields do, and
    one that is unset goes back to the default. Raise InvalidArgumentError (CONFIG_INVALID) for an unknown
    path.
    """
    paths: dict[str, None] = {}
    for path in mask:
        if path not in _PATHS:
            raise InvalidArgumentError(
                "CONFIG_INVALID",
                f"update_mask names {path[:120]!r}, which is no field of config: "
                f"those are *, {', '.join(name for name in _PATHS if name != _ALL)}",
                field="update_mask",
            )
        paths |= dict.fromkeys(_PATHS[path])
    if not paths:
        return Changes(config)
    values = pb.InstanceConfig()
    cleared = [path for path in paths if not _copy_field(path, config, values)]
    return Changes(values, cleared, defaults or pb.InstanceConfig())


def _copy_field(path: str, source: pb.InstanceConfig, target: pb.InstanceConfig) -> bool:
    """Copy the field to where it is unset; return whether the source has it."""
    owner, name = _owner_and_field(source, path)
    value = next((value for known, value in owner.ListFields() if known.name == name), None)
    if value is None:
        return False
    to, _ = _owner_and_field(target, path)
    _overlay(to, type(owner)(**{name: value}))
    return True


def _paths() -> Iterator[tuple[str, Sequence[str]]]:
    """Yield each path that a mask may name, and those of the single fields that it stands for."""
    for known in pb.InstanceConfig.DESCRIPTOR.fields:
        if known.name == "catalogue":
            continue  # output only
        if known.message_type in (pb.RetryPolicy.DESCRIPTOR, pb.Budget.DESCRIPTOR):
            parts = [f"{known.name}.{part.name}" for part in known.message_type.fields]
            yield known.name, parts
            yield from ((part, (part,)) for part in parts)
        else:
            yield known.name, (known.name,)


_ALL: Final = "*"
_PATHS: Final[Mapping[str, Sequence[str]]] = {
    **dict(_paths()),
    _ALL: [path for path, stands_for in _paths() if path in stands_for],
}


def resolve(
    requested: pb.InstanceConfig, base: pb.InstanceConfig, paths: Collection[str] | None = ()
) -> pb.InstanceConfig:
    """Lay what is requested over `base`; raise InvalidArgumentError (CONFIG_INVALID, PLAN_INVALID).

    A plan may name input files at `paths`; None: those are not known yet, see `check_plan`.
    """
    _check(requested)
    if requested.subtasks:  # before any of them is copied
        _check_plan(partial(plan.check_size, requested.subtasks, requested.max_subtasks or base.max_subtasks))
    config = pb.InstanceConfig()
    config.CopyFrom(base)
    _overlay(config, requested)
    config.catalogue = "" if requested.workers else base.catalogue
    if config.subtasks:
        check_plan(config, paths)
    return config


def check_plan(config: pb.InstanceConfig, paths: Collection[str] | None) -> None:
    """Raise InvalidArgumentError (PLAN_INVALID) where the client's own plan cannot be used."""
    _check_plan(partial(plan.validate, map(subtask_of, config.subtasks), config.max_subtasks, paths))


def _check_plan(check: Callable[[], object]) -> None:
    try:
        check()
    except plan.PlanError as error:
        raise InvalidArgumentError("PLAN_INVALID", str(error), field="config.subtasks") from None


def _overlay(target: Message, source: Message) -> None:
    # Unlike MergeFrom, a duration or a list replaces the old one instead of being added to it.
    for known, value in source.ListFields():
        if known.is_repeated:
            target.ClearField(known.name)
            getattr(target, known.name).extend(value)
        elif isinstance(value, Duration):
            getattr(target, known.name).CopyFrom(value)
        elif isinstance(value, Message):
            _overlay(getattr(target, known.name), value)
        else:
            setattr(target, known.name, value)


def _check(config: pb.InstanceConfig) -> None:
    # A plan has words of its own for what is wrong with it.
    beyond_limits = limits.faults(config, without=("subtasks",))
    for path, fault in chain(beyond_limits, catalogue.name_faults(config.workers)):
        raise InvalidArgumentError("CONFIG_INVALID", f"config.{path} {fault}", field=f"config.{path}")


def _owner_and_field(config: pb.InstanceConfig, path: str) -> tuple[Message, str]:
    owner, _, name = path.rpartition(".")
    return (getattr(config, owner) if owner else config), name
