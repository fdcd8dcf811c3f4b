"""The step is pure, learns from the labels there are, compiles once, and does not care how many devices there are."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import SIZE, TASKS, label_stats, make_batch, make_model

from mtl_jax.data.input.augment import Augmentation
from mtl_jax.data.store.reader import open_store
from mtl_jax.evaluation.step import eval_step
from mtl_jax.objectives import fixed
from mtl_jax.platform import sharding
from mtl_jax.run.state import init_state
from mtl_jax.training import building, loop
from mtl_jax.training.step import moving_average, repeat_fetching, train_step

ROWS = 16


@pytest.fixture(scope='module')
def parts():
  """State, and the step with everything static bound; plain SGD, so that rounding does not grow."""
  model, tx, objective = make_model(), optax.sgd(1e-3), fixed([1.0, 0.5])
  make_state = partial(
    init_state,
    0,
    model=model,
    tx=tx,
    objective=objective,
    label_stats=label_stats(make_batch()),
    input_shape=(*SIZE, 3),
    ema_decay=0.9,
  )
  step = partial(
    train_step,
    model=model,
    tasks=TASKS,
    tx=tx,
    objective=objective,
    augmentation=Augmentation(flip=True, shift=0.1, zoom=0.1),
    seed=0,
    ema_decay=0.9,
  )
  return model, jax.jit(make_state), step


def test_eight_devices_match_one(parts):
  assert jax.device_count() == 8
  _, make_state, step = parts
  losses = {}
  for count in (1, 8):
    mesh = sharding.make_mesh(jax.devices()[:count])
    whole, rows = sharding.replicated(mesh), sharding.by_rows(mesh)
    state = jax.device_put(make_state(), whole)
    compiled = jax.jit(step, in_shardings=(whole, rows), out_shardings=whole)
    losses[count] = []
    for index in range(4):
      state, metrics = compiled(state, jax.device_put(make_batch(seed=index), rows))
      losses[count].append([float(metrics[name]) for name in sorted(metrics)])
  np.testing.assert_allclose(losses[8], losses[1], rtol=2e-5)


def test_labels_under_a_false_mask_do_not_move_anything(parts):
  _, make_state, step = parts
  state, batch, poisoned = make_state(), make_batch(), make_batch()
  for name, mask in batch['mask'].items():
    poisoned['labels'][name] = np.where(mask, batch['labels'][name], np.nan)
  compiled = jax.jit(step)
  clean, clean_metrics = compiled(state, batch)
  dirty, dirty_metrics = compiled(state, poisoned)
  jax.tree.map(np.testing.assert_array_equal, (clean, clean_metrics), (dirty, dirty_metrics))


def test_a_task_without_any_label_leaves_its_head_alone(parts):
  _, make_state, step = parts
  batch = make_batch()
  batch['mask']['landmarks'][:] = False
  batch['labels']['landmarks'][:] = np.nan
  state = make_state()
  after, metrics = jax.jit(step)(state, batch)
  assert float(metrics['landmarks/loss']) == 0
  assert np.isfinite(float(metrics['loss']))
  heads = [s.variables['params']['head_landmarks'] for s in (state, after)]
  jax.tree.map(np.testing.assert_array_equal, *heads)
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.variables['params'], after.variables['params'])
  assert max(jax.tree.leaves(moved['head_attributes'])) > 0


def test_the_total_is_the_weighted_sum_of_the_tasks(parts):
  _, make_state, step = parts
  _, metrics = jax.jit(step)(make_state(), make_batch())
  expected = metrics['attributes/loss'] + 0.5 * metrics['landmarks/loss']
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-6)


def test_several_steps_in_one_call_equal_single_steps(parts):
  _, make_state, step = parts
  state = make_state()
  batches = [make_batch(seed=index) for index in range(3)]
  stacked = jax.tree.map(lambda *rows: np.stack(rows), *batches)
  together, metrics = jax.jit(repeat_fetching(step, lambda _, batch: batch))(state, (), stacked)
  compiled = jax.jit(step)
  for index, batch in enumerate(batches):
    state, single = compiled(state, batch)
    np.testing.assert_allclose(metrics['loss'][index], single['loss'], rtol=1e-4)  # Rounding grows with steps.
  assert int(together.step) == 3
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), together.variables, state.variables)


@pytest.mark.parametrize('mode', ['resident', 'streamed'])
def test_a_run_compiles_its_step_once(tiny_config, tmp_path, monkeypatch, mode):
  traces = []

  def counted(*arguments, **keywords):
    traces.append(True)
    return train_step(*arguments, **keywords)

  monkeypatch.setattr(building, 'train_step', counted)
  overrides = {'data.mode': mode, 'train.steps': 9, 'eval.every_steps': 4, 'checkpoint.every_steps': 3}
  loop.train(tiny_config(**overrides), tmp_path)
  assert len(traces) == 1


def test_dispatches_cover_every_step_once_and_stop_where_the_host_must_look(tiny_config, store_dir):
  overrides = {
    'train.steps': 23,
    'train.steps_per_dispatch': 4,
    'train.log_every_steps': 10,
    'eval.every_steps': 7,
    'checkpoint.every_steps': 100,
  }
  run = building.build(tiny_config(**overrides), open_store(store_dir))
  for start in (0, 5, 22):
    plan = list(run.dispatches((10, 7, 100), start))
    covered = [first + i for first, size in plan for i in range(size)]
    assert covered == list(range(start, 23))
    assert {size for _, size in plan} <= {1, 4}
    ends = {first + size for first, size in plan}
    assert {stop for stop in (7, 10, 14, 20, 21, 23) if stop > start} <= ends
  whole = list(run.dispatches((10, 7, 100)))
  for number, (start, _) in enumerate(whole):  # A run that resumes after any of them takes the others as they were.
    assert list(run.dispatches((10, 7, 100), start)) == whole[number:]


def test_on_a_cpu_long_runs_take_four_steps_in_one_call_and_short_ones_compile_no_loop(tiny_config, store_dir):
  for steps, size in ((building.LONG_RUN, 4), (building.LONG_RUN - 1, 1)):
    assert building.build(tiny_config(**{'train.steps': steps}), open_store(store_dir)).steps_per_dispatch == size


def test_predictions_are_turned_back_into_the_labels_own_units(parts):
  model, make_state, _ = parts
  state = make_state()
  zeroed = jax.tree.map(jnp.zeros_like, state.variables['params'])
  variables = {**state.variables, 'params': zeroed}
  result = eval_step(variables, state.label_stats, make_batch(), model=model, tasks=TASKS)
  mean = np.asarray(state.label_stats['landmarks'].mean)
  np.testing.assert_allclose(result['predictions']['landmarks'], np.broadcast_to(mean, (ROWS, 4)), rtol=1e-6)
  np.testing.assert_allclose(result['predictions']['attributes'], 0.5, rtol=1e-6)


def test_the_moving_average_follows_its_formula():
  average, value = {'w': jnp.array(1.0)}, {'w': jnp.array(3.0)}
  early = moving_average(average, value, step=jnp.array(0), decay=0.99)
  late = moving_average(average, value, step=jnp.array(10**6), decay=0.99)
  np.testing.assert_allclose(early['w'], 0.1 * 1 + 0.9 * 3, rtol=1e-6)
  np.testing.assert_allclose(late['w'], 0.99 * 1 + 0.01 * 3, rtol=1e-6)
  assert moving_average(None, value, step=jnp.array(0), decay=0.0) is None


def test_a_single_task_model_is_the_joint_program_without_the_other_head(tiny_config, store_dir):
  store = open_store(Path(store_dir))
  joint = jax.eval_shape(building.build(tiny_config(), store).make_state).variables['params']
  single = jax.eval_shape(building.build(tiny_config(tasks='landmarks'), store).make_state).variables['params']
  assert set(joint) - set(single) == {'head_attributes'}
  assert jax.tree.map(lambda leaf: leaf.shape, joint['shared']) == jax.tree.map(
    lambda leaf: leaf.shape, single['shared']
  )
