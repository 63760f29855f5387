"""A queue of instances in which each tenant has its turn, however many another one has queued."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from orchestrator.core.identity import InstanceRef

V = TypeVar("V")


class FairQueue(Generic[V]):
    """Values by instance: tenants in turn (round robin; Nagle, RFC 970), each one's in order of arrival."""

    def __init__(self) -> None:
        self._by_tenant: dict[str, dict[InstanceRef, V]] = {}
        """The tenants that have something here, the one whose turn is next first."""
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, ref: InstanceRef) -> bool:
        return ref in self._by_tenant.get(ref.key.tenant, ())

    def __iter__(self) -> Iterator[InstanceRef]:
        return (ref for queued in self._by_tenant.values() for ref in queued)

    def __setitem__(self, ref: InstanceRef, value: V) -> None:
        """Add an instance at the end of its tenant's; one that is there keeps its place."""
        queued = self._by_tenant.setdefault(ref.key.tenant, {})
        self._size += ref not in queued
        queued[ref] = value

    def __delitem__(self, ref: InstanceRef) -> None:
        queued = self._by_tenant[ref.key.tenant]
        del queued[ref]
        self._size -= 1
        if not queued:
            del self._by_tenant[ref.key.tenant]

    def values(self) -> Iterator[V]:
        """Return what is here, tenant by tenant."""
        return (value for queued in self._by_tenant.values() for value in queued.values())

    def discard(self, ref: InstanceRef) -> None:
        """Take an instance out, if it is here."""
        if ref in self:
            del self[ref]

    @property
    def tenants(self) -> tuple[str, ...]:
        """The tenants that have something here."""
        return tuple(self._by_tenant)

    def count(self, tenant: str) -> int:
        """Return how many a tenant has here."""
        return len(self._by_tenant.get(tenant, ()))

    def pop_next(self, may: Callable[[str], bool] = lambda _: True) -> tuple[InstanceRef, V] | None:
        """Take out the first of the next tenant that may have its turn; None: there is no such tenant."""
        tenant = next(filter(may, self._by_tenant), None)
        if tenant is None:
            return None
        queued = self._by_tenant.pop(tenant)
        ref = next(iter(queued))
        value = queued.pop(ref)
        self._size -= 1
        if queued:
            self._by_tenant[tenant] = queued
        return ref, value
