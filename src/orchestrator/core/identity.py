"""Identify an instance: the name that a client uses, and one incarnation under that name."""

from typing import NamedTuple


class InstanceKey(NamedTuple):
    """What a client names: an id, unique within its tenant ("" while there are no tenants)."""

    tenant: str
    id: str


class InstanceRef(NamedTuple):
    """One incarnation under a key, from its creation to its deletion.

    The log gives each creation an incarnation of its own, and none twice: an instance that is deleted and
    created again under the same key is another one, and a change of the first never reaches the second.
    """

    key: InstanceKey
    incarnation: int
    """Grows in the order of creation, over all tenants."""

    @property
    def id(self) -> str:
        """The id that clients and events use."""
        return self.key.id
