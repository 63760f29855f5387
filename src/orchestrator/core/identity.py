"""Which instance is meant: the name a client uses, and the one life that goes by it."""

from typing import NamedTuple


class InstanceKey(NamedTuple):
    """What a client names: an id, unique within its tenant ("" while there are no tenants)."""

    tenant: str
    id: str


class InstanceRef(NamedTuple):
    """One life under a key, from its creation to its deletion.

    The log gives each creation an incarnation of its own, and none twice: an instance that is deleted and
    made anew under the same key is another one, and what is meant for the first never reaches the second.
    """

    key: InstanceKey
    incarnation: int
    """Grows in the order of creation, over all tenants."""

    @property
    def id(self) -> str:
        """The id that clients and events use."""
        return self.key.id
