"""Work done ahead by threads, handed out in order.

Pillow, zlib, hashlib and torch let other threads run while they work, so threads suffice; processes would copy the
caches and are slow to start on Windows.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], thread_count: int) -> Iterator[Result]:
    """`function(item)` of each item, in the items' order, at most a few items ahead of the reader.

    Args:
        thread_count: 0 works each item out when it is asked for, without threads. The results are the same.
    """
    if thread_count == 0:
        yield from map(function, items)
        return
    executor = ThreadPoolExecutor(thread_count)
    try:
        waiting = deque()
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) > 2 * thread_count:  # bounded: a hundred thousand images must not lie in memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also when the reader stops early
        executor.shutdown(wait=True, cancel_futures=True)
