"""Test faces with the landmarks that runs predict for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtl_jax.config import flat
from mtl_jax.data.store import cache as sets
from mtl_jax.errors import CheckpointError
from mtl_jax.platform import npz
from mtl_jax.reports import charts
from mtl_jax.reports.page import Block, Heading, Picture, Pictures, Text
from mtl_jax.reports.runs import Run
from mtl_jax.reports.scoreboard import kinds_of

MAX_FACES = 12


def sheet(runs: Sequence[Run]) -> list[Block]:
  """Test faces at even distances through the split, with the landmarks of every run that predicts them."""
  kinds = kinds_of(run.evaluation for run in runs)
  task = next((task for task, kind in kinds.items() if kind == 'landmarks'), None)
  having = [(number, run) for number, run in enumerate(runs) if task in run.evaluation['tasks']]
  if task is None or not having or not flat(having[0][1].config).get('data.dir'):  # A mixture's images lie apart.
    return []
  images = _images(having[0][1])
  predictions = {number: _predictions(run, task) for number, run in having}
  first = next(iter(predictions.values()))
  labelled = [row for row, (_, _, mask) in first.items() if mask.reshape(-1, 2).all(-1).any()]
  labelled = [row for row in labelled if 0 <= row < len(images)]
  chosen = [labelled[i] for i in np.linspace(0, len(labelled) - 1, min(MAX_FACES, len(labelled))).astype(int)]
  drawn = []
  for row in chosen:
    _, label, mask = first[row]
    true = np.where(mask, label, np.nan).reshape(-1, 2)
    points = {number: rows[row][0].reshape(-1, 2) for number, rows in predictions.items() if row in rows}
    distances = ', '.join(
      f'{runs[number].name} off by {100 * np.nanmean(np.linalg.norm(p - true, axis=-1)):.1f}% of the image'
      for number, p in points.items()
    )
    alt = f'Test face {row} with {np.isfinite(true).all(-1).sum()} true landmarks; {distances} on average.'
    drawn.append(Picture(charts.face(images[row], true, points), alt))
  marks = ', '.join(f'{"x+"[i % 2]} where {run.name} puts it' for i, (_, run) in enumerate(having))
  said = (
    f'A ring where the landmark is, {marks}. Faces are taken at even distances through the test split, not chosen. '
    f'Source: {_data_dir(having[0][1])}'
  )
  return [Heading('Test faces'), Text(said), Pictures(drawn)]


def _data_dir(run: Run) -> str:
  return flat(run.config).get('data.dir') or '.'


def _images(run: Run) -> Any:
  """The prepared set's images `[n, h, w, 3]`, not read until looked at."""
  return sets.open_set(_data_dir(run)).images


def _predictions(run: Run, task: str) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Prediction, label and mask `[2 p]` of each row of the prepared set."""
  path = run.folder / 'eval' / 'test.npz'
  make = f'mtl-jax eval --workdir {run.folder} --predictions {path}'
  if not path.exists():
    raise CheckpointError(f'no {path}; make it with `{make}`')
  names = ('example_id', f'{task}/pred', f'{task}/label', f'{task}/mask')
  found = npz.read(path, names=names, advice=f'make it again with `{make}`', only=True)
  rows, *columns = (found[name] for name in names)
  return {int(row): (pred, label, mask) for row, pred, label, mask in zip(rows, *columns, strict=True)}
