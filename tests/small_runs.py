"""Runs whose steps take a millisecond, in this process and in others, and the bits that they leave."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.configs import default
from mtl_jax.data.input import mixture
from mtl_jax.data.prepare import prepare
from mtl_jax.platform import sharding
from mtl_jax.run import checkpoint, workdir
from mtl_jax.run.checkpoint import Checkpoints
from mtl_jax.training import building
from mtl_jax.training.interrupt import Interruption

TINY = {
  'model.backbone': 'convnet',
  'model.width': 4,
  'model.head_features': 8,
  'train.steps': 4,
  'train.batch_size': 8,
  'train.log_every_steps': 1,
  'eval.every_steps': 2,
  'eval.batch_size': 16,
  'checkpoint.every_steps': 2,
}


def make_faces(out: Path) -> Path:
  """A prepared set of 60 synthetic faces at 16x16."""
  prepare('synthetic', source=None, out=out, image_size=(16, 16), num=60, seed=0, log=lambda _: None)
  return out


def make_config(faces: Path, **overrides) -> ConfigDict:
  """Twelve steps of eight examples through two tiny convolutions, saved every third."""
  config = default.get_config()
  config.update_from_flattened_dict(
    {
      'data.dir': str(faces),
      'model.backbone': 'convnet',
      'model.width': 2,
      'model.head': 'linear',
      'train.steps': 12,
      'train.batch_size': 8,
      'train.log_every_steps': 1,
      'eval.every_steps': 6,
      'eval.batch_size': 16,
      'checkpoint.every_steps': 3,
      **overrides,
    }
  )
  return config.lock()


def leaves(directory: Path, step: int | None = None) -> list[np.ndarray]:
  """Every array of a checkpoint, by default the latest: weights, averages, optimizer, objective."""
  config, _ = workdir.read(directory)
  run = building.build(config, mixture.open_data(config.data))
  checkpoints = Checkpoints(directory)
  like = checkpoint.abstract_state(run.make_state, sharding.replicated(run.mesh))
  restored = checkpoints.restore(like, step=step)
  checkpoints.close()
  assert restored is not None
  return [np.asarray(leaf) for leaf in jax.tree.leaves(restored[0])]


def assert_same_bits(one: Path, other: Path) -> None:
  ours, theirs = leaves(one), leaves(other)
  assert len(ours) == len(theirs) > 20
  for a, b in zip(ours, theirs, strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def at_step(monkeypatch, steps: int, act=lambda: True) -> None:
  """Calls `act` when the loop has done so many steps since now; a true result is a request to stop."""
  asked = []

  def requested(self: Interruption) -> bool:
    asked.append(True)
    return bool(len(asked) == steps and act())

  monkeypatch.setattr(Interruption, 'requested', requested)


def file_of(config: ConfigDict) -> str:
  """The text of a configuration file."""
  return f'from mtl_jax import config\n\ndef get_config():\n  return config.from_json({configs.to_json(config)!r})\n'


def command(folder: Path, config: ConfigDict, workdir: Path) -> list[str]:
  """That trains in a process of its own; the config's file is written into the folder."""
  (folder / 'config.py').write_text(file_of(config))
  return [sys.executable, '-m', 'mtl_jax', 'train', '--config', str(folder / 'config.py'), '--workdir', str(workdir)]


def one_device() -> dict[str, str]:
  """The environment of a process that starts and saves sooner than one with eight devices."""
  return {**os.environ, 'XLA_FLAGS': ''}


def on_one_device(monkeypatch) -> None:
  """Runs take the first device alone from here on, as on most computers: they compile sooner."""
  mesh = sharding.make_mesh(jax.devices()[:1])
  monkeypatch.setattr(sharding, 'make_mesh', lambda *_, **__: mesh)


def start(command: list[str], *, environment: dict[str, str] | None = None) -> subprocess.Popen:
  return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def end(process: subprocess.Popen, *signals: signal.Signals) -> str:
  """Sends signals and waits; what the process wrote to stderr."""
  for number in signals:
    process.send_signal(number)
    time.sleep(0.02)  # Two of a kind at once would be one.
  return process.communicate(timeout=900)[1]


def free_port() -> int:
  """A port of this host that nothing listens on."""
  with socket.create_server(('', 0)) as server:
    return server.getsockname()[1]


def assert_close_weights(one: Path, other: Path) -> None:
  """Alike to rounding: sums over one device and over two are rounded in another order."""
  for a, b in zip(leaves(one), leaves(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
