"""What an engine is to those who speak to it."""

from typing import Protocol

from orchestrator.core.create import NewInstance
from orchestrator.core.state import Instance


class Engine(Protocol):
    """Runs instances. Every answer is durable before it is given."""

    async def create(self, new: NewInstance) -> Instance:
        """Record an instance and see to it that it runs.

        A repeated request (same `request_id` and digest) gives the first instance as it is now. Raise
        InvalidArgumentError for a model that cannot be called, AlreadyExistsError, QueueFullError and
        UnavailableError.
        """

    async def terminate(self, instance_id: str) -> Instance:
        """Stop an instance and close its model calls; raise InstanceNotFoundError, StateForbidsError."""
