"""Runs work ahead of its use in a pool; results come in order, and few of them wait."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')


def in_order(pool: Executor, make: Callable[[Item], Result], items: Iterable[Item], *, depth: int) -> Iterator[Result]:
  """Yields `make(item)` for each item in order, up to `depth` of them made ahead; the rest is cancelled at its end."""
  pending: collections.deque[Future[Result]] = collections.deque()
  try:
    for item in items:
      pending.append(pool.submit(make, item))
      if len(pending) > depth:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    for future in pending:
      future.cancel()
