"""The log as one caller sees it: the instances of its tenant, and no others.

RPCs are given nothing else of the log, so that none can leave the tenant out.
"""

from collections.abc import AsyncIterator, Sequence

from orchestrator.core import create
from orchestrator.core.create import NewInstance
from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.errors import InstanceNotFoundError, InvalidArgumentError
from orchestrator.log import subscription
from orchestrator.log.base import Creation, EventLog, Head, ListPage, Query
from orchestrator.log.states import Loaded, StateStore
from orchestrator.log.subscription import GlobalStep, Step


class TenantView:
    """What a caller of `tenant` sees; with `sees_all`, the instances of all other tenants as well."""

    def __init__(self, log: EventLog, states: StateStore, tenant: str, *, sees_all: bool) -> None:
        self.tenant = tenant
        """Whose what it creates is."""
        self._log = log
        self._states = states
        self._seen_tenant = None if sees_all else tenant

    async def head(self, instance_id: str) -> Head:
        """Find the instance that goes by an id: for one who sees all its own tenant's, else the only one.

        Raise InstanceNotFoundError, and InvalidArgumentError (ID_INVALID) for what is no id or is several.
        """
        create.check_id(instance_id)
        try:
            return await self._log.head(InstanceKey(self.tenant, instance_id))
        except InstanceNotFoundError:
            if self._seen_tenant is not None:
                raise
        found = await self._log.find(instance_id)
        if not found:
            raise InstanceNotFoundError(instance_id)
        if len(found) > 1:
            tenants = ", ".join(repr(head.ref.key.tenant) for head in found)
            raise InvalidArgumentError(
                "ID_INVALID",
                f"the tenants {tenants} each have an instance {instance_id!r}: use a token of the one "
                "that is meant",
                field="id",
            )
        return found[0]

    async def load(self, instance_id: str) -> Loaded:
        """Load the instance that goes by an id; errors as of `head`."""
        return await self._states.at(await self.head(instance_id))

    async def at(self, head: Head) -> Loaded:
        """Load an instance that was found here; see StateStore."""
        return await self._states.at(head)

    async def created_before(self, new: NewInstance) -> Loaded | None:
        """Load the instance that the same request has created; raise AlreadyExistsError as `create` would."""
        creation = Creation(InstanceKey(self.tenant, new.id), (), new.identity)
        made = await self._log.check_creation(creation)
        return await self._states.load(made.ref.key) if made else None

    async def delete(self, instance_id: str) -> InstanceRef:
        """Remove a finished instance and say which it was; errors as of `head` and of EventLog."""
        ref = (await self.head(instance_id)).ref
        await self._log.delete(ref)
        self._states.forget(ref)
        return ref

    async def list(self, query: Query) -> ListPage:
        """List instances; see EventLog."""
        return await self._log.list(query._replace(tenant=self._seen_tenant))

    async def last_position(self) -> int:
        """Return the last position; see EventLog. It is one of all tenants, as positions are."""
        return await self._log.last_position()

    async def wait_for_end(self, instance_id: str, timeout_s: float) -> Loaded:
        """Wait for an instance's end; errors as of `head`, and see `subscription.wait_for_end`."""
        key = (await self.head(instance_id)).ref.key
        return await subscription.wait_for_end(self._log, self._states, key, timeout_s)

    def follow(self, head: Head, *, after: int, live: bool, idle_s: float) -> AsyncIterator[Step]:
        """Follow an instance that was found here; see `subscription.follow`."""
        return subscription.follow(self._log, head, after=after, live=live, idle_s=idle_s)

    def follow_all(
        self, *, after: int, labels: Sequence[tuple[str, str]] = (), live: bool = True, idle_s: float
    ) -> AsyncIterator[GlobalStep]:
        """Follow all instances; see `subscription.follow_all`."""
        return subscription.follow_all(
            self._log, after=after, tenant=self._seen_tenant, labels=labels, live=live, idle_s=idle_s
        )
