"""Work that would hold the event loop up is done beside it, one piece after the other in a thread.

In one thread, for Python runs one at a time anyway: of several, the loop would have to wait for each.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

T = TypeVar("T")

_THREAD: Final = ThreadPoolExecutor(1, thread_name_prefix="offload")


async def offload(work: Callable[[], T]) -> T:
    """Return what the work returns, or raise what it raises. Cancelling does not stop started work."""
    return await asyncio.get_running_loop().run_in_executor(_THREAD, work)
