"""A progress bar on stderr, for terminals and for logs."""

import sys
from typing import TextIO

from tqdm import tqdm

from mtl_jax.errors import printable


class _Lines:
  """A text stream on which each redrawn bar is a line of its own, for logs that are files."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def write(self, text: str) -> None:
    text = text.strip('\r\n ')
    if text:
      self._stream.write(text + '\n')

  def flush(self) -> None:
    self._stream.flush()


def bar(
  total: int, *, description: str, unit: str, initial: int = 0, enabled: bool = True, unit_scale: bool = False
) -> tqdm:
  """A tqdm bar on stderr; where that is no terminal, a line every 15 seconds. `unit_scale` writes 5M for 5,000,000."""
  terminal = sys.stderr.isatty()
  return tqdm(
    total=total,
    initial=initial,
    desc=printable(description),
    unit=unit,
    unit_scale=unit_scale,
    disable=not enabled,
    dynamic_ncols=terminal,
    ncols=None if terminal else 100,
    mininterval=0.5 if terminal else 15,
    file=sys.stderr if terminal else _Lines(sys.stderr),  # pyright: ignore
  )
