"""Making the next item while the caller works on this one."""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def prefetched(items: Iterable[T]) -> Generator[T]:
    """The items in their order, one ahead of the caller in a thread; an error comes out in its item's place."""
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="next batch") as thread:
        coming = thread.submit(next, iterator, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, iterator, _END)
            yield item  # type: ignore[misc]  # an item: not the end
