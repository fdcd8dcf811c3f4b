"""Labels are dropped by seed and row id alone, in the stated shares, and a run learns from what is left."""

import json

import numpy as np
import pytest
from scipy import stats

from mtl_jax.data.input.keep_labels import label_mask
from mtl_jax.data.store.reader import open_store
from mtl_jax.errors import ConfigError
from mtl_jax.training import building, loop

NAMES = ('attributes', 'landmarks', 'age')
IDS = np.arange(20_000, dtype=np.int32)


def assert_share(rows: np.ndarray, share: float) -> None:
  """A fair draw is refused once in a million times."""
  assert stats.binomtest(int(rows.sum()), len(rows), share).pvalue > 1e-6


def refusal(rule: str, names=NAMES) -> str:
  with pytest.raises(ConfigError) as caught:
    label_mask(rule, names, example_ids=IDS[:10], seed=0)
  message = str(caught.value)
  assert message.startswith('config.data.keep_labels: ')
  assert '\n' not in message
  return message


@pytest.mark.parametrize('seed', [0, 1, 2**31 - 1])
def test_each_task_keeps_its_share_of_rows(seed):
  keep = label_mask('attributes:0.1, landmarks:0.7', NAMES, example_ids=IDS, seed=seed)
  assert list(keep) == list(NAMES)
  assert all(rows.dtype == bool and rows.shape == IDS.shape for rows in keep.values())
  assert_share(keep['attributes'], 0.1)
  assert_share(keep['landmarks'], 0.7)
  assert keep['age'].all()  # A task that is not listed keeps all.
  assert_share(keep['attributes'] & keep['landmarks'], 0.07)  # One task's draw says nothing of another's.


@pytest.mark.parametrize(('rule', 'all_or_none'), [('', True), (' ', True), ('age:1', True), ('age:0', False)])
def test_all_and_nothing_can_be_kept(rule, all_or_none):
  assert (label_mask(rule, NAMES, example_ids=IDS, seed=3)['age'] == all_or_none).all()


@pytest.mark.parametrize(
  ('rule', 'shares'),
  [
    ('disjoint', (1 / 3, 1 / 3, 1 / 3)),
    ('disjoint:attributes=3,landmarks=1', (0.75, 0.25, 0)),
    ('disjoint: age=0.5, landmarks=0, attributes=2', (0.8, 0, 0.2)),
  ],
)
def test_disjoint_rows_keep_exactly_one_task_by_weight(rule, shares):
  keep = label_mask(rule, NAMES, example_ids=IDS, seed=5)
  assert (sum(rows.astype(int) for rows in keep.values()) == 1).all()
  for name, share in zip(NAMES, shares, strict=True):
    assert_share(keep[name], share)


@pytest.mark.parametrize('rule', ['attributes:0.3,age:0.6', 'disjoint', 'disjoint:age=2,landmarks=1'])
def test_a_row_is_drawn_for_whatever_the_other_rows_are(rule):
  whole = label_mask(rule, NAMES, example_ids=IDS, seed=1)
  some = np.random.default_rng(0).permutation(IDS)[:500]
  for dtype in (np.int32, np.int64):
    part = label_mask(rule, NAMES, example_ids=some.astype(dtype), seed=1)
    for name in NAMES:
      np.testing.assert_array_equal(part[name], whole[name][some])


@pytest.mark.parametrize('rule', ['attributes:0.5', 'disjoint'])
def test_the_seed_decides_and_nothing_else(rule):
  one, same, other = (label_mask(rule, NAMES, example_ids=IDS, seed=seed)['attributes'] for seed in (7, 7, 8))
  np.testing.assert_array_equal(one, same)
  share = one.mean()
  assert_share(one & other, share**2)


def test_rows_in_a_line_are_independent():
  rows = label_mask('age:0.5', NAMES, example_ids=IDS, seed=0)['age']
  for distance in (1, 2, 64, 4096):
    assert_share(rows[distance:] == rows[:-distance], 0.5)


def test_the_draw_stays_what_it_was():
  rows = label_mask('attributes:0.5', NAMES, example_ids=IDS[:16], seed=0)['attributes']
  assert ''.join(str(int(row)) for row in rows) == '0110000001101100'


def test_the_order_in_a_rule_and_a_further_task_move_no_other_row():
  one = label_mask('disjoint:attributes=3,landmarks=1', NAMES, example_ids=IDS, seed=0)
  other = label_mask('disjoint:landmarks=1,attributes=3', NAMES[::-1], example_ids=IDS, seed=0)
  more = label_mask('disjoint:attributes=3,landmarks=1,age=4', NAMES, example_ids=IDS, seed=0)
  for name in NAMES[:2]:
    np.testing.assert_array_equal(one[name], other[name])
    assert not (more[name] & ~one[name]).any()


@pytest.mark.parametrize(
  ('rule', 'said'),
  [
    ('atributes:0.5', "no choice 'atributes'; did you mean 'attributes'?"),
    ('disjoint:landmark=1', "no choice 'landmark'; did you mean 'landmarks'?"),
    ('xyz:0.5', 'choose from attributes, landmarks, age'),
    ('age:1.5', "'age' must be from 0 to 1, not '1.5'"),
    ('age:-0.1', "'age' must be from 0 to 1, not '-0.1'"),
    ('age:nan', "'age' must be from 0 to 1, not 'nan'"),
    ('age:half', "'age' must be from 0 to 1, not 'half'"),
    ('age:', "'age' must be from 0 to 1, not ''"),
    ('age', "'age' is no TASK:NUMBER; write such as attributes:0.5, or disjoint alone"),
    ('age=0.5', "'age=0.5' is no TASK:NUMBER"),
    ('age:0.5,', "'' is no TASK:NUMBER"),
    ('age:0.5,age:0.5', "'age' is named twice"),
    ('disjoint:', "'' is no TASK=NUMBER; write such as disjoint:attributes=2"),
    ('disjoint:age:1', "'age:1' is no TASK=NUMBER"),
    ('disjoint:age=-1', "'age' must be finite and at least 0, not '-1'"),
    ('disjoint:age=inf', "'age' must be finite and at least 0, not 'inf'"),
    ('disjoint:age=0', 'gives no task a weight above 0'),
    ('disjoint,age:0.5', "'disjoint' is no TASK:NUMBER"),
  ],
)
def test_a_wrong_rule_is_told_in_one_line(rule, said):
  assert said in refusal(rule)


def test_only_the_train_split_loses_labels_and_its_statistics_are_of_the_rest(tiny_config):
  config = tiny_config(**{'data.keep_labels': 'landmarks:0.5'})
  store = open_store(config.data.dir)
  whole, run = building.build(tiny_config(), store), building.build(config, store)
  keep = label_mask('landmarks:0.5', NAMES, example_ids=run.train.example_id, seed=0)['landmarks']
  assert 0 < keep.sum() < len(keep)
  np.testing.assert_array_equal(run.train.mask['landmarks'], whole.train.mask['landmarks'] & keep[:, None])
  np.testing.assert_array_equal(run.train.mask['attributes'], whole.train.mask['attributes'])
  for name in ('attributes', 'landmarks'):
    np.testing.assert_array_equal(run.val.mask[name], whole.val.mask[name])
  mean_face = np.mean(run.train.labels['landmarks'], 0, where=run.train.mask['landmarks'])
  np.testing.assert_allclose(run.label_stats['landmarks'].mean, mean_face, rtol=1e-5)


def test_single_task_runs_see_the_labels_of_the_joint_one(tiny_config):
  joint = tiny_config(**{'data.keep_labels': 'disjoint'})
  store = open_store(joint.data.dir)
  both = building.build(joint, store).train.mask
  assert not (both['attributes'].any(1) & both['landmarks'].any(1)).any()
  for tasks in ('attributes', 'landmarks', 'attributes/Smiling'):
    config = tiny_config(tasks, **{'data.keep_labels': 'disjoint'})
    for name, mask in building.build(config, store).train.mask.items():
      np.testing.assert_array_equal(mask.any(1), both[name.split('/')[0]].any(1))


def test_a_task_left_without_labels_is_refused_before_the_run_begins(tiny_config, tmp_path):
  config = tiny_config(**{'data.keep_labels': 'disjoint:landmarks=1'})
  with pytest.raises(ConfigError, match=r"leaves no label of task 'attributes'; keep some, or do not learn it"):
    loop.train(config, tmp_path / 'run')
  assert not (tmp_path / 'run' / 'config.json').exists()


def test_a_run_on_disjoint_labels_learns_both_tasks(tiny_config, tmp_path):
  config = tiny_config(
    **{'data.keep_labels': 'disjoint', 'train.steps': 30, 'eval.every_steps': 30, 'checkpoint.every_steps': 30}
  )
  loop.train(config, tmp_path)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  for task in ('attributes', 'landmarks'):
    losses = [line[f'train/{task}/loss'] for line in lines]
    assert len(losses) == 30
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_a_disjoint_rule_may_leave_a_share_of_rows_all_labels_and_another_none():
  keep = label_mask('disjoint:attributes=4,landmarks=4,all=1,none=1', NAMES, example_ids=IDS, seed=5)
  count = sum(rows.astype(int) for rows in keep.values())
  assert_share(count == 3, 0.1)
  assert_share(count == 0, 0.1)
  assert_share(keep['attributes'] & ~keep['landmarks'], 0.4)
  assert_share(keep['age'], 0.1)
  without = label_mask('disjoint:attributes=4,landmarks=4', NAMES, example_ids=IDS, seed=5)
  assert not (keep['attributes'] & ~keep['age'] & ~without['attributes']).any()  # Rows are taken, never moved.
