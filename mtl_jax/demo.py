"""The whole path on synthetic faces: generates, prepares, trains joint and single-task, evaluates, and reports."""

import logging
import os
from pathlib import Path

from ml_collections import ConfigDict

from mtl_jax import api, reports
from mtl_jax.configs import demo
from mtl_jax.training import loop

log = logging.getLogger('mtl_jax')

# Each side by the name of its folder. All have the same model, data order, steps and schedule.
SIDES = {'joint': 'attributes,landmarks', 'attributes': 'attributes', 'landmarks': 'landmarks'}
NUM_FACES = 4_000
SEED = 0


def run(workdir: Path, *, num_faces: int = NUM_FACES, base: ConfigDict | None = None) -> str:
  """Runs the demo in `workdir`; started again it goes on from where it stopped.

  Args:
    workdir: gets `data`, one run folder a side, and `report.html`.
    num_faces: how many faces to draw.
    base: configuration of all sides; the demo's own by default.

  Returns:
    The table of all sides and of the baselines, as text.
  """
  data = workdir / 'data'
  if not (data / 'schema.json').exists():
    log.info('1/3 drawing %d faces and preparing them in %s', num_faces, data)
    api.prepare('synthetic', out=data, num=num_faces, seed=SEED, workers=os.cpu_count() or 1)
  runs = {}
  for number, (name, tasks) in enumerate(SIDES.items(), 1):
    config = (base or demo.get_config()).copy_and_resolve_references()
    config.tasks = tasks
    config.data.dir = str(data)
    log.info('2/3 model %d of %d: %s', number, len(SIDES), name)
    loop.train(config, workdir / name, name=name)
    predictions = workdir / name / 'eval' / 'test.npz'
    api.evaluate(workdir / name, predictions=predictions)
    runs[name] = workdir / name
  page = workdir / 'report.html'
  reports.write_report(runs, page, title='mtl_jax demo: synthetic faces', show_pictures=True)
  log.info('3/3 wrote %s', page)
  return reports.terminal.of_runs(runs)
