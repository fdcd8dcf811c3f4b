"""Progress of a run: a bar with images/s, and the writer of metrics.jsonl and of the trackers."""

import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.platform import address, atomic_write, json_file
from mtl_jax.platform.progress_bar import bar
from mtl_jax.run.goodput import UPLOAD_EVERY_SECS, Goodput
from mtl_jax.training import trackers


class ThroughputBar:
  """The bar of a training run, and its rate in images/s, of the time that `goodput` accounts to training alone."""

  def __init__(
    self, *, total: int, start: int, batch_size: int, description: str, goodput: Goodput, enabled: bool = True
  ):
    self._bar = bar(total, description=description, unit='step', initial=start, enabled=enabled)
    self._batch_size = batch_size
    self._steps = 0
    self._goodput = goodput
    self._busy = goodput.busy_secs()

  def advance(self, steps: int) -> None:
    self._steps += steps
    self._bar.update(steps)

  def images_per_sec(self) -> float:
    """The rate since this was last asked, also shown on the bar from now on."""
    busy = self._goodput.busy_secs()
    rate = self._steps * self._batch_size / max(busy - self._busy, 1e-9)
    self._steps, self._busy = 0, busy
    self._bar.set_postfix_str(f'{rate:,.0f} images/s', refresh=False)
    return rate

  def close(self) -> None:
    self._bar.close()


class MetricWriter:
  """Appends to metrics.jsonl and hands on to trackers, one call a log line; in all but one process, nowhere.

  Nothing can be appended to an object of a bucket: there files are kept here and written whole, every half minute.
  """

  def __init__(self, workdir: Path, *, config: ConfigDict, resumed_at: int, enabled: bool):
    """Drops the lines after step `resumed_at`: the run will write them again. UserError as `trackers.open_all`."""
    self._enabled = enabled
    if not enabled:
      return
    self._workdir, self._written = workdir, 0.0
    kept = [line for line in read_metrics(workdir / 'metrics.jsonl') if line['step'] <= resumed_at]
    text = b''.join(msgspec.json.encode(line) + b'\n' for line in kept)
    self._folder = None if address.is_local(workdir) else tempfile.TemporaryDirectory()
    here = Path(self._folder.name) if self._folder else workdir
    atomic_write.write(here / 'metrics.jsonl', text)
    self._file = (here / 'metrics.jsonl').open('ab')
    fields = configs.flat(configs.to_json(config))
    start = trackers.Start(name=address.name(workdir), folder=here, config=fields, step=resumed_at)
    self._trackers = trackers.open_all(config.train.trackers, workdir, start)

  def write(self, step: int, values: dict[str, Any], *, saved: bool = False) -> None:
    """Writes a line; one that is `saved` with a checkpoint is in a bucket before that."""
    if not self._enabled:
      return
    self._file.write(msgspec.json.encode({'step': step, **values}) + b'\n')  # NaN becomes null.
    self._file.flush()
    for tracker in self._trackers:
      tracker.write(step, values)
    if saved or time.monotonic() - self._written > UPLOAD_EVERY_SECS:
      self._upload()

  def close(self) -> None:
    if self._enabled:
      self._file.close()
      for tracker in self._trackers:
        tracker.close()
      self._upload()

  def _upload(self) -> None:
    if self._folder:
      atomic_write.write_all(Path(self._folder.name), self._workdir)
      self._written = time.monotonic()


def read_metrics(path: Path) -> list[dict[str, Any]]:
  """The lines of a metrics.jsonl; what is no line of one, as the last when a kill cut it short, is left out."""
  return [line for line in json_file.lines(path) if type(line.get('step')) in (int, float)]
