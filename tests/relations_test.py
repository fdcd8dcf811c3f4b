"""Relations as users write them: what can be said, what is refused and how, what labels and outputs mean in them."""

from types import SimpleNamespace

import numpy as np
import pytest

from mtl_jax.configs import default
from mtl_jax.data.sources import clothing, fairface, utkface
from mtl_jax.data.synthetic.expressions import EXPRESSIONS, TABLE, TASKS, UNITS
from mtl_jax.errors import ConfigError
from mtl_jax.objectives import matching
from mtl_jax.objectives.matching import relations
from mtl_jax.tasks import BinaryTask, CategoricalTask, LabelStats, LandmarkTask, RegressionTask

FACES = (
  BinaryTask('attributes', ('Smiling', 'Black_Hair', 'Blond_Hair', 'Young')),
  LandmarkTask(
    'landmarks', tuple(f'{p}_{a}' for p in ('lefteye', 'righteye', 'leftmouth', 'rightmouth') for a in 'xy')
  ),
  RegressionTask('age', ('age',)),
  CategoricalTask('pose', ('pose',), classes=('left', 'front', 'right')),
)
EVERY_KIND = """
[variable.old]
of = "age"
edges = [18, 60]
spread = 5
[variable.mouth]
of = "landmarks"
distance = ["leftmouth", "rightmouth"]
over = ["lefteye", "righteye"]
edges = [0.5]
spread = 0.1
[variable.hair]
one_of = ["Black_Hair", "Blond_Hair"]
[[relation]]
source = "pose"
prior = {left = 0.2, front = 0.6, right = 0.2}
table.left = {Smiling = 0.3, mouth = {"below0.5" = 1.0}}
table.front = {Smiling = 0.5, mouth = {"below0.5" = 0.2, "from0.5" = 0.8}}
table.right = {Smiling = 0.3, mouth = {"below0.5" = 1.0}}
[[relation]]
source = "old"
targets = ["hair", "attributes/Young"]
"""


def written(tmp_path, text):
  path = tmp_path / 'own.toml'
  path.write_text(text)
  return str(path)


@pytest.fixture
def read(tmp_path):
  return lambda text, tasks=FACES: relations.read(written(tmp_path, text), known=FACES, tasks=tasks)


def test_every_kind_of_variable_can_be_source_or_target(read):
  pose, old = read(EVERY_KIND)
  assert [target.name for target in pose.targets] == ['Smiling', 'mouth']
  np.testing.assert_allclose(pose.tables[0], [[0.7, 0.3], [0.5, 0.5], [0.7, 0.3]])
  np.testing.assert_allclose(pose.tables[1], [[1, 0], [0.2, 0.8], [1, 0]])
  np.testing.assert_allclose(pose.prior, [0.2, 0.6, 0.2])
  assert (old.source.classes, old.tables) == (('below18', '18to60', 'from60'), None)
  assert old.targets[0].classes == ('Black_Hair', 'Blond_Hair', 'none')


def test_relations_of_tasks_that_a_run_does_not_learn_are_left_out(read):
  assert read(EVERY_KIND, FACES[:2]) == []
  (old,) = read(EVERY_KIND, FACES[:3])
  assert old.source.name == 'old'
  (few,) = read(EVERY_KIND, (FACES[1], FACES[3]))
  assert [target.name for target in few.targets] == ['mouth']


def test_labels_of_split_tasks_are_found_by_their_names(read):
  split = tuple(FACES[0].subset((label,), field='', name=f'attributes/{label}') for label in FACES[0].labels)
  _, old = read(EVERY_KIND, (*split, *FACES[1:]))
  assert [target.columns() for target in old.targets] == [
    (('attributes/Black_Hair', 0), ('attributes/Blond_Hair', 0)),
    (('attributes/Young', 0),),
  ]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'missing required field `relation`'),
    ('relation = [', 'is no TOML'),
    ('[[relations]]', 'relations'),
    ('[[relation]]\nsource = "pose"\ntagets = ["Young"]', 'tagets'),
    ('variable.x = {of = "age", edges = ["3"]}\n[[relation]]\nsource = "x"\ntargets = ["pose"]', 'edges'),
    ('variable.x = {of = "age", edges = [nan]}\n[[relation]]\nsource = "x"\ntargets = ["pose"]', 'x.edges'),
    ('variable.x = {of = "age", edges = [3], spread = -1}\n[[relation]]\nsource = "x"\ntargets = ["pose"]', 'x.spread'),
    ('[[relation]]\nsource = "Smilin"\ntable.yes = {Young = 1}', "no choice 'Smilin'; did you mean 'Smiling'"),
    ('[[relation]]\nsource = "pose"\ntable.front = {Yung = 1}', "no choice 'Yung'; did you mean 'Young'"),
    ('[[relation]]\nsource = "pose"\ntable.frnt = {Young = 1}', "no choice 'frnt'; did you mean 'front'"),
    ('[[relation]]\nsource = "pose"\ntable.front = {Young = 1.2}', 'table.front.Young must be a probability .* 1.2'),
    ('[[relation]]\nsource = "pose"\ntable.front = {Young = nan}', 'must be a probability from 0 to 1, not nan'),
    ('[[relation]]\nsource = "Young"\ntable.yes = {pose = 0.5}', 'for each class of pose: left, front, right'),
    ('[[relation]]\nsource = "pose"\nprior = {left = 0.5}\ntargets = ["Young"]', 'prior: the probabilities sum to 0.5'),
    ('[[relation]]\nsource = "pose"', 'neither targets nor a table'),
    ('[[relation]]\ntargets = ["Young"]', 'missing required field `source`'),
    ('[[relation]]\nsource = "pose"\ntargets = ["pose"]', "'pose' is source and target at once"),
    ('variable.x = {of = "age", edges = [3, 2]}\n[[relation]]\nsource = "x"\ntargets = ["pose"]', 'ascending'),
    ('variable.x = {of = "pose", edges = [2]}\n[[relation]]\nsource = "x"\ntargets = ["pose"]', 'pose is categorical'),
    ('variable.x = {of = "agee", edges = [2]}\n[[relation]]\nsource = "x"\ntargets = ["pose"]', "no choice 'agee'"),
    ('variable.x = {one_of = ["Young"]}\n[[relation]]\nsource = "x"\ntargets = ["pose"]', 'two labels at least'),
  ],
)
def test_a_wrong_table_is_refused_in_one_line_that_says_where(read, text, message):
  with pytest.raises(ConfigError, match=message) as caught:
    read(text)
  assert str(caught.value).startswith('config.objective.matching.relations')
  assert '\n' not in str(caught.value)


def test_a_name_that_may_mean_two_labels_is_refused(tmp_path):
  tasks = (*FACES, BinaryTask('smile', ('Smiling',)))
  text = '[[relation]]\nsource = "pose"\ntable.front = {Smiling = 1}'
  with pytest.raises(ConfigError, match='may be attributes/Smiling and smile/Smiling'):
    relations.read(written(tmp_path, text), known=tasks, tasks=tasks)


def test_a_built_in_relation_that_is_misspelt_gets_the_nearest():
  with pytest.raises(ConfigError, match="no choice 'expresions'; did you mean 'expressions'"):
    relations.read('expresions', known=TASKS, tasks=TASKS)


def test_a_python_file_gives_relations_too(tmp_path):
  path = tmp_path / 'own.py'
  path.write_text("def get_relations():\n  return {'relation': [{'source': 'pose', 'targets': ['Young']}]}\n")
  (found,) = relations.read(str(path), known=FACES, tasks=FACES)
  assert found.targets[0].name == 'Young'


def test_the_expressions_of_the_paper_are_those_that_faces_are_drawn_by():
  (found,) = relations.read('expressions', known=TASKS, tasks=TASKS)
  assert found.source.classes == EXPRESSIONS
  given = np.stack([found.tables[[t.name for t in found.targets].index(unit)][:, 1] for unit in UNITS], 1)
  np.testing.assert_allclose(np.clip(given, 0.03, 0.95), TABLE)


def test_celebas_relations_serve_a_set_that_has_some_of_their_labels():
  smile, young, hair = relations.read('celeba', known=(LABELS := FACES_OF_CELEBA), tasks=LABELS)
  assert (smile.source.name, young.source.name, hair.source.name) == ('Smiling', 'Young', 'hair')
  assert [target.name for target in smile.targets] == ['mouth_width']
  with pytest.raises(ConfigError, match='celeba relates nothing in this data set'):
    relations.read('celeba', known=FACES[2:], tasks=FACES[2:])


HAIR = ('Black_Hair', 'Blond_Hair', 'Brown_Hair', 'Gray_Hair')
FACES_OF_CELEBA = (BinaryTask('attributes', ('Smiling', 'Young', *HAIR)), FACES[1])


def test_what_labels_and_outputs_say_of_a_variable(read):
  (mouth,), (hair, _) = (
    relation.targets[1:] if i == 0 else relation.targets for i, relation in enumerate(read(EVERY_KIND))
  )
  old = read(EVERY_KIND)[1].source
  labels = {
    'attributes': np.array([[0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [0, 1, np.nan, 0]], np.float32),
    'age': np.array([[18.0], [70.0], [3.0], [np.nan]], np.float32),
    'landmarks': np.array([[0.3, 0.4, 0.7, 0.4, 0.4, 0.8, 0.5, 0.8]] * 3 + [[np.nan] * 8], np.float32),
  }
  mask = {name: ~np.isnan(values) for name, values in labels.items()}
  for variable, classes, known in (
    (hair, [0, 2, 0, 0], [True, True, False, False]),
    (old, [1, 2, 0, 0], [True, True, True, False]),
    (mouth, [0, 0, 0, 0], [True, True, True, False]),
  ):
    found = variable.observe(labels, mask)
    assert (found[0].tolist(), found[1].tolist()) == (classes, known)
  stats = {name: LabelStats(np.float32([50.0]), np.float32([10.0]), np.zeros(1)) for name in ('age',)}
  p = np.exp(old.log_p({'age': np.float32([[1.0], [-4.0]])}, stats))
  np.testing.assert_allclose(p, [[0, 0.5, 0.5], [0.9452, 0.0548, 0]], atol=1e-4)  # Normal around 60 and 10, spread 5.
  logits = np.float32([[0, 1.0, 2.0, 0]])
  e = np.exp([1.0, 2.0, 0.0])
  np.testing.assert_allclose(np.exp(hair.log_p({'attributes': logits}, stats))[0], e / e.sum(), rtol=1e-5)


def config_of(**fields):
  config = default.get_config()
  with config.unlocked():
    config.objective.matching.update(fields)
  return config


def split_of(expressions, units):
  labels = {'expression': np.float32(expressions)[:, None], 'action_units': np.float32(units)}
  return SimpleNamespace(labels=labels, mask={name: ~np.isnan(values) for name, values in labels.items()})


def test_nothing_is_coupled_unless_asked_for_and_a_single_task_has_nothing_to_couple():
  both = split_of([0, 1], np.zeros((2, len(UNITS))))
  arguments = {'known': TASKS, 'train': both, 'val': None}
  assert matching.from_config(default.get_config().objective, tasks=TASKS[:2], **arguments) is None
  config = config_of(relations=('expressions',), distribution=1.0)
  assert matching.from_config(config.objective, tasks=TASKS[:1], **arguments) is None
  assert len(matching.from_config(config.objective, tasks=TASKS[:2], **arguments).relations[0].targets) == len(UNITS)
  with pytest.raises(ConfigError, match='relations is empty; name ages or celeba'):
    matching.from_config(config_of(distribution=1.0).objective, tasks=TASKS[:2], **arguments)


def test_a_table_that_is_to_be_counted_needs_a_row_with_both_labels():
  random = np.random.default_rng(0)
  expressions = random.integers(0, 7, 20_000)
  units = (random.random((20_000, len(UNITS))) < TABLE[expressions]).astype(float)
  apart = split_of(
    np.where(np.arange(20_000) % 2, expressions, np.nan), np.where(np.arange(20_000)[:, None] % 2, np.nan, units)
  )
  config = config_of(relations=('expressions',), distribution=1.0, table='estimated')
  with pytest.raises(ConfigError, match=r'no row has both expression and AU.*count_in=val'):
    matching.from_config(config.objective, tasks=TASKS[:2], known=TASKS, train=apart, val=None)
  with config.unlocked():
    config.objective.matching.count_in = 'val'
  whole = split_of(expressions, units)
  (found,) = matching.from_config(config.objective, tasks=TASKS[:2], known=TASKS, train=apart, val=whole).relations
  counted = np.stack([found.tables[[t.name for t in found.targets].index(unit)][:, 1] for unit in UNITS], 1)
  assert np.abs(counted - TABLE).max() < 0.045  # Four standard errors of a seventh of 20,000 rows are 0.037.


def test_a_table_of_zeros_and_ones_has_every_unit_that_the_paper_lists():
  whole = split_of([0, 1], np.zeros((2, len(UNITS))))
  config = config_of(relations=('expressions',), distribution=1.0, table='binary')
  (found,) = matching.from_config(config.objective, tasks=TASKS[:2], known=TASKS, train=whole, val=None).relations
  counted = np.stack([found.tables[[t.name for t in found.targets].index(unit)][:, 1] for unit in UNITS], 1)
  np.testing.assert_array_equal(counted, TABLE > 0.03)


AGE_AND_YOUNG = (BinaryTask('attributes', ('Young',)), RegressionTask('age', ('age',)))


@pytest.mark.parametrize(
  ('spread', 'message'),
  [
    ('', 'old needs a spread where config.objective.standardize is false'),
    ('spread = 5', 'has no split val'),
  ],
)
def test_a_number_in_ranges_needs_a_spread_where_labels_are_learned_in_their_own_units(tmp_path, spread, message):
  path = tmp_path / 'own.toml'
  path.write_text(f"""
[variable.old]
of = "age"
edges = [50]
{spread}
[[relation]]
source = "old"
table.from50 = {{Young = 0.1}}
""")
  config = config_of(distribution=1.0, relations=(str(path),), count_in='val')
  with config.unlocked():
    config.objective.standardize = False
  with pytest.raises(ConfigError, match=message):
    matching.from_config(config.objective, tasks=AGE_AND_YOUNG, known=AGE_AND_YOUNG, train=None, val=None)


def test_files_of_relations_are_found_from_any_folder_and_names_stay_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert relations.absolute(('celeba', 'own.toml', 'celeb')) == ('celeba', str(tmp_path / 'own.toml'), 'celeb')


@pytest.mark.parametrize(
  'content', ['a = ' + '[' * 100_000, 'a = ' + '9' * 6000, 'a.' * 5000 + 'b = 1', '\x00', '[[relation]]\na = 1e9999']
)
def test_a_file_that_is_no_toml_of_ours_is_refused_in_one_line(tmp_path, content):
  path = tmp_path / 'mine.toml'
  path.write_text(content)
  config = config_of(relations=(str(path),), distribution=1.0)
  with pytest.raises(ConfigError, match='mine') as caught:
    matching.from_config(config.objective, tasks=TASKS[:2], known=TASKS, train=None, val=None)
  assert len(str(caught.value).splitlines()) == 1


AGES = (fairface.TASKS[0], utkface.TASKS[0])
RACES = (fairface.TASKS[2], utkface.TASKS[2])


def test_soft_co_annotation_by_the_mean_of_units_is_refused_where_no_relation_has_a_unit():
  labels = {'age_group': np.float32([[0], [8]]), 'age': np.float32([[2], [80]])}
  train = SimpleNamespace(labels=labels, mask={name: np.isfinite(values) for name, values in labels.items()})
  arguments = {'tasks': AGES, 'known': AGES, 'train': train, 'val': None}
  config = config_of(relations=('ages',), soft_co_annotation=0.1)
  with pytest.raises(ConfigError, match=r'soft_co_annotation has no effect.*score=posterior'):
    matching.from_config(config.objective, **arguments)
  with config.unlocked():
    config.objective.matching.score = 'posterior'
  assert matching.from_config(config.objective, **arguments) is not None


GARMENTS = clothing.CHOICES['category']


def test_ages_in_years_and_in_bins_settle_each_other():
  by_bin, by_year = relations.read('ages', known=AGES, tasks=AGES)
  for one in (by_bin, by_year):
    np.testing.assert_array_equal(one.tables[0], np.eye(9))
  years = np.float32([1, 2, 3, 9, 10, 29, 30, 69, 70, 116])
  labels = {'age': years[:, None], 'age_group': AGES[0].from_source(years, width=1, height=1)[:, None]}
  known = {name: np.ones((10, 1), bool) for name in labels}
  said = [np.asarray(one.source.observe(labels, known)[0]) for one in (by_bin, by_year)]
  np.testing.assert_array_equal(said, [np.digitize(years, (3, 10, 20, 30, 40, 50, 60, 70))] * 2)


def test_an_ordinal_task_is_read_as_the_bins_it_predicts():
  by_bin, _ = relations.read('ages', known=AGES, tasks=AGES)
  outputs = np.float32(np.random.default_rng(0).normal(size=(5, 8)))
  found = by_bin.source.log_p({'age_group': outputs}, {})
  np.testing.assert_allclose(np.exp(found), AGES[0].predict(outputs), rtol=1e-4, atol=1e-6)


def test_seven_races_are_five_of_another_set():
  (found,) = relations.read('races', known=RACES, tasks=RACES)
  meant = ('white', 'black', 'asian', 'asian', 'indian', 'other', 'other')
  assert [utkface.TASKS[2].output_names[place] for place in found.tables[0].argmax(1)] == list(meant)
  np.testing.assert_array_equal(found.tables[0].max(1), 1)


def test_clothes_are_related_by_what_their_words_mean_and_by_counts():
  (given,) = relations.read('clothing', known=clothing.TASKS, tasks=clothing.TASKS)
  table = dict(zip((target.name for target in given.targets), given.tables, strict=True))
  assert table['collar'][GARMENTS.index('suit'), 1] == 1
  assert table['sleeves'][GARMENTS.index('tank_top'), 0] == 1
  assert (given.source.name, set(table)) == (
    'category', {'necktie', 'collar', 'placket', 'scarf', 'skin_exposure', 'neckline', 'sleeves'}
  )  # fmt: skip
  (counted,) = relations.read('clothing_counted', known=clothing.TASKS, tasks=clothing.TASKS)
  assert counted.tables is None
  assert {target.name for target in counted.targets} == {'neckline', 'sleeves', *clothing.ATTRIBUTES}


def test_a_table_of_clothes_is_counted_with_laplace_smoothing_where_both_are_labelled():
  random = np.random.default_rng(0)
  labels = {task.name: random.integers(0, 2, (300, len(task.labels))).astype(np.float32) for task in clothing.TASKS}
  mask = {name: random.random(values.shape) < 0.7 for name, values in labels.items()}
  split = SimpleNamespace(labels=labels, mask=mask)
  config = config_of(relations=('clothing_counted',), distribution=1.0, smoothing=2.0).objective
  (found,) = matching.from_config(config, tasks=clothing.TASKS, known=clothing.TASKS, train=split, val=None).relations
  for target, table in zip(found.targets, found.tables, strict=True):
    ((task, column),) = target.columns()
    both = mask['category'][:, 0] & mask[task][:, column]
    counts = np.zeros(table.shape) + 2.0
    for category, label in zip(labels['category'][both, 0], labels[task][both, column], strict=True):
      counts[int(category), int(label)] += 1
    np.testing.assert_allclose(table, counts / counts.sum(1, keepdims=True), rtol=1e-6, err_msg=target.name)
