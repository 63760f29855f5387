"""What an engine is to those who speak to it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from orchestrator.core.create import NewInstance
from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.core.origin import NO_ORIGIN, Origin
from orchestrator.engine.live import LiveTexts
from orchestrator.engine.scheduler import GateStatus
from orchestrator.engine.steering import Action
from orchestrator.log.states import Loaded, StateStore


class Load(NamedTuple):
    """How much an engine has to do."""

    active: int
    """Instances that are admitted."""
    queued: int
    """Instances that wait for admission."""
    gates: Sequence[GateStatus]


class Engine(Protocol):
    """Runs instances. Every answer is durable before it is given."""

    @property
    def states(self) -> StateStore:
        """The instances as they are recorded."""

    @property
    def live(self) -> LiveTexts:
        """What calls under way have written so far."""

    def load(self) -> Load:
        """Return how much there is to do now."""

    def waiting_reason(self, ref: InstanceRef) -> str:
        """Return why nothing happens to an instance that is not at rest; empty: something does."""

    async def create(self, new: NewInstance) -> Loaded:
        """Record an instance and see to it that it runs.

        A repeated request (same `request_id` and digest) gives the first instance as it is now. Raise
        InvalidArgumentError for a model that cannot be called, AlreadyExistsError, QueueFullError and
        UnavailableError.
        """

    async def create_all(self, batch: Sequence[NewInstance]) -> Sequence[Loaded]:
        """Record instances in one commit, all or none; answers and errors as of `create`."""

    async def steer(
        self,
        key: InstanceKey,
        action: Action,
        origin: Origin = NO_ORIGIN,
        expected_sequence: int | None = None,
    ) -> Loaded:
        """Do to an instance what a client asks, as core/lifecycle.py says; give it as it is then.

        Raise InstanceNotFoundError, SequenceMismatchError where `expected_sequence` is given and is not the
        last one, UnavailableError, and what the action raises.
        """
