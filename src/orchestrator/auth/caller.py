"""Who calls, and in which role."""

import re
from enum import Enum
from typing import Final, NamedTuple

TENANT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,99}")
"""A tenant's name; so is a token's own."""


class Role(Enum):
    """What a caller may do; which RPCs that is, `rpc/access.py` says."""

    READ = "read"
    """Look at what its tenant has."""
    WRITE = "write"
    """Also create and steer."""
    ADMIN = "admin"
    """Also delete, and all of that with every tenant's instances."""
    METRICS = "metrics"
    """Read metrics, and nothing else."""


class Caller(NamedTuple):
    """One who is authenticated."""

    name: str
    """Who it is: a token's name, or a JWT's subject. Recorded as the actor of what it asks for."""
    tenant: str
    role: Role


ANYONE: Final = Caller("", "", Role.ADMIN)
"""Whoever calls a service that asks for no credentials."""
