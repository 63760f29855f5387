"""What a tenant may use."""

from typing import Final, NamedTuple


class Quota(NamedTuple):
    """What a tenant may use; None: as much as the service takes."""

    max_active: int | None = None
    """How many of its instances run at once; the rest are queued."""
    max_queued: int | None = None
    """How many may be queued."""
    max_cost_usd_per_day: float | None = None
    """How much its model calls may cost from midnight to midnight, UTC; then what is queued waits."""


NO_QUOTA: Final = Quota()
