"""Goodput: accounts every second of a run to an activity, over all restarts."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar, cast

import jax
import msgspec

from mtl_jax.errors import CheckpointError
from mtl_jax.platform import address, json_file
from mtl_jax.run import workdir

log = logging.getLogger('mtl_jax')

FILE = 'goodput.json'  # In the workdir: the step, and `spent` until then.
# step: the host waits for the devices, or gives them work; input: it waits for the next batch; restart: a run that was
# begun before starts again, and what it had done since its last checkpoint; rest: the first start, and logging.
HEADINGS = ('step', 'compile', 'input', 'eval', 'save', 'restart', 'rest')
WRITE_EVERY_SECS = 1.0
UPLOAD_EVERY_SECS = 30.0  # Of a workdir in a bucket.

Item = TypeVar('Item')
_END = object()


class Goodput:
  """The time of one run by activity; each second counts once.

  Attributes:
    spent: seconds by heading.
  """

  def __init__(self) -> None:
    self.spent: dict[str, float] = dict.fromkeys(HEADINGS, 0.0)
    self._headings = ['rest']
    self._since = time.monotonic()
    self._written = 0.0
    self._step: int | None = None  # The last that was written of; None before `resume`.
    self._compiled: list[tuple[float, float]] = []  # Intervals of compiling under the present heading, none in another.
    self._thread = threading.get_ident()
    _ACCOUNTS[:] = [self]

  @contextmanager
  def timed(self, heading: str) -> Iterator[None]:
    """Books the time of the block under a heading, without compilation and without blocks inside it."""
    self._settle()
    self._headings.append(heading)
    try:
      yield
    finally:
      self._settle()
      self._headings.pop()

  def waiting(self, heading: str, items: Iterable[Item]) -> Iterator[Item]:
    """Yields the items, and books the time of waiting for them under the heading."""
    iterator = iter(items)
    while True:
      with self.timed(heading):
        item = next(iterator, _END)
      if item is _END:
        return
      yield cast(Item, item)

  def _settle(self) -> None:
    now = time.monotonic()
    compiling = sum(end - start for start, end in self._compiled)
    self.spent['compile'] += compiling
    self.spent[self._headings[-1]] += now - self._since - compiling
    self._since = now
    self._compiled = []

  def compiled(self, seconds: float) -> None:
    """Books a stage of a compilation that ends now. Stages may be nested, and the outer ones end later."""
    end = time.monotonic()
    start = max(end - seconds, self._since)
    if threading.get_ident() == self._thread and start < end:
      self._compiled = [inner for inner in self._compiled if inner[0] < start]
      self._compiled.append((max([start, *(before for _, before in self._compiled)]), end))

  def busy_secs(self) -> float:
    """Seconds of training: the devices' and the input's."""
    self._settle()
    return self.spent['step'] + self.spent['input']

  def resume(self, directory: Path, step: int, spent: Mapping[str, float]) -> None:
    """Adds what was spent before this start of the run.

    Args:
      directory: the workdir. Its file may be ahead of the checkpoint: then what lies between was lost.
      step: the checkpoint's; 0 where there is none.
      spent: the checkpoint's.
    """
    self._settle()
    self._step = step
    before: dict[str, float] = dict(spent)
    written = read(directory)
    if written is not None:
      later = sum(written['spent'].values()) - sum(before.values())
      if written['step'] <= step and later > 0:  # The end of a save, and of the process.
        before = written['spent']
      else:
        before['restart'] = before.get('restart', 0.0) + max(later, 0.0)
    if before:
      self.spent['restart'] += self.spent.pop('rest')
    self.spent = {heading: self.spent.get(heading, 0.0) + before.get(heading, 0.0) for heading in HEADINGS}

  def rewind(self, spent: Mapping[str, float]) -> None:
    """Books the time since a checkpoint, whose accounts are these, as work that is done again."""
    self._settle()
    lost = sum(self.spent.values()) - sum(spent.values())
    self.spent = {heading: spent.get(heading, 0.0) for heading in HEADINGS}
    self.spent['restart'] += lost

  def now(self) -> dict[str, float]:
    """Seconds by heading until now."""
    self._settle()
    return dict(self.spent)

  def write(self, directory: Path, step: int, *, always: bool = True) -> None:
    """Writes the accounts into the workdir; unless `always`, at most every second, into a bucket every half minute.

    Raises:
      CheckpointError: if the workdir has vanished.
    """
    every_secs = WRITE_EVERY_SECS if address.is_local(directory) else UPLOAD_EVERY_SECS
    if jax.process_index() == 0 and (always or time.monotonic() - self._written > every_secs):
      workdir.write_json(directory / FILE, {'step': step, 'spent': self.now()})
      self._written, self._step = time.monotonic(), step

  def finish(self, directory: Path) -> None:
    """Writes the accounts of a run that trained, and logs them in a line."""
    if self._step is None:
      return
    with contextlib.suppress(OSError, CheckpointError):  # The run ends for that reason, which is said then.
      self.write(directory, self._step)
    if jax.process_index() == 0:
      log.info(text(self.now()))


class Accounts(TypedDict):
  """The content of goodput.json."""

  step: Annotated[int, msgspec.Meta(ge=0)]
  spent: dict[str, float]


def read(directory: Path) -> Accounts | None:
  """Reads what `write` wrote; None if there is none, or it is not as it was written."""
  try:
    written = json_file.read(directory / FILE, Accounts, advice='it is written anew')
    return written if set(written['spent']) == set(HEADINGS) and sum(written['spent'].values()) >= 0 else None
  except CheckpointError:
    return None


def text(spent: Mapping[str, float]) -> str:
  """One line: the share of training, then every heading's seconds."""
  total = sum(spent.values())
  each = ', '.join(f'{heading} {spent[heading]:.1f} s' for heading in HEADINGS)
  return f'goodput {100 * spent["step"] / max(total, 1e-9):.1f} % of {total:.1f} s: {each}'


_ACCOUNTS: list[Goodput] = []  # The latest, whose run is going on.


def _heard(event: str, duration_secs: float, **_: Any) -> None:
  if event.startswith('/jax/core/compile/'):
    for accounts in _ACCOUNTS:
      accounts.compiled(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_heard)
