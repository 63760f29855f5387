"""What an engine is to those who speak to it."""

from collections.abc import Sequence
from typing import Protocol

from orchestrator.core.create import NewInstance
from orchestrator.core.instance import Instance
from orchestrator.engine.live import LiveTexts
from orchestrator.engine.run import Action


class Engine(Protocol):
    """Runs instances. Every answer is durable before it is given."""

    @property
    def live(self) -> LiveTexts:
        """What calls under way have written so far."""

    async def create(self, new: NewInstance) -> Instance:
        """Record an instance and see to it that it runs.

        A repeated request (same `request_id` and digest) gives the first instance as it is now. Raise
        InvalidArgumentError for a model that cannot be called, AlreadyExistsError, QueueFullError and
        UnavailableError.
        """

    async def create_all(self, wishes: Sequence[NewInstance]) -> Sequence[Instance]:
        """Record instances in one commit, all or none; answers and errors as of `create`."""

    async def steer(self, instance_id: str, action: Action) -> Instance:
        """Do to an instance what a client asks, as core/lifecycle.py says; give it as it is then.

        Raise InstanceNotFoundError, UnavailableError, and what the action raises.
        """
