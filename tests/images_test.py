"""Images come from the disk as they were written, or are named, counted and replaced with their labels masked."""

import os
import re
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
import simplejpeg
import small_runs
from ml_collections import ConfigDict
from PIL import Image

from mtl_jax.data.input import mixture, resident
from mtl_jax.data.input.mixture import load_split
from mtl_jax.data.input.pipeline import Split, streamed_input
from mtl_jax.data.input.sampler import make_sampler
from mtl_jax.data.prepare import prepare
from mtl_jax.data.source import Record
from mtl_jax.data.sources.image_file import decode
from mtl_jax.data.store import images
from mtl_jax.data.store.reader import Store, open_store
from mtl_jax.data.store.writer import prepare as prepare_source
from mtl_jax.errors import DataError, Interrupted
from mtl_jax.platform import sharding
from mtl_jax.tasks import BinaryTask, Task
from mtl_jax.training import loop
from mtl_jax.training.progress import read_metrics

ENCODINGS = tuple(images.ENCODINGS)
both = pytest.mark.parametrize('encoding', ENCODINGS)


class FromFiles:
  """A source of image files."""

  name = 'files'
  tasks: tuple[Task, ...] = (BinaryTask('attributes', ('Smiling',)),)

  def __init__(self, files, **record):
    self._files, self._record = files, record

  def records(self):
    for file in self._files:
      yield Record(file.name, 'train', file, {'attributes': np.ones(1, np.float32)}, **self._record)


def face(row: int, size: tuple[int, int] = (24, 32)) -> Image.Image:
  """A smooth picture, so that a JPEG changes it by little."""
  x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
  pixels = np.stack([255 * x, 255 * y, np.full_like(x, 20 * row)], -1)
  return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope='module')
def stores(tmp_path_factory, store_dir) -> dict[str, Path]:
  """The same 60 synthetic faces in each encoding."""
  folder = tmp_path_factory.mktemp('encoded') / 'faces'
  prepare('synthetic', source=None, out=folder, image_size=(32, 32), num=60, seed=0, log=print, encoding='jpeg')
  return {'decoded': store_dir, 'jpeg': folder}


@pytest.fixture
def copy(stores, tmp_path):
  """`copy(encoding, rows)`: a copy of a set, opened, and then with one bit flipped in each of these rows' images."""

  def make(encoding: str, rows=(), *, corrupt_share: float = 1.0, name: str = 'copy') -> Store:
    folder = tmp_path / name
    for path in stores[encoding].rglob('*.*'):
      if path.is_file() and 'source' not in path.relative_to(stores[encoding]).parts:
        (folder / path.relative_to(stores[encoding])).parent.mkdir(parents=True, exist_ok=True)
        (folder / path.relative_to(stores[encoding])).write_bytes(path.read_bytes())
    store = open_store(folder, corrupt_share=corrupt_share)
    damage(store, rows)
    return store

  return make


def damage(store: Store, rows) -> None:
  """Flips a bit in the middle of the stored images of these rows, which a decoder need not notice."""
  offsets = store.records.offsets
  with (store.directory / images.ENCODINGS[store.schema['encoding']]).open('r+b') as file:
    for row in rows:
      place = int(offsets[row] + offsets[row + 1]) // 2
      file.seek(place)
      byte = file.read(1)[0]
      file.seek(place)
      file.write(bytes([byte ^ 1]))


def train_split(store: Store) -> Split:
  return load_split(store, 'train', store.tasks)


# What is written.


def test_an_encoded_set_holds_jpegs_of_the_decoded_pixels(stores):
  decoded, encoded = (open_store(stores[encoding]) for encoding in ENCODINGS)
  content = (encoded.directory / 'images.bin').read_bytes()
  offsets = np.load(encoded.directory / 'offsets.npy')
  assert offsets.dtype == np.int64
  assert len(content) == offsets[-1]
  for row in (0, 31, 59):
    jpeg = content[offsets[row] : offsets[row + 1]]
    assert jpeg == simplejpeg.encode_jpeg(decoded.images[row], 95, colorsubsampling='420')
    np.testing.assert_array_equal(encoded.images[row], simplejpeg.decode_jpeg(jpeg))
  assert encoded.schema['counts']['as_they_were'] == 0
  for name, labels in decoded.labels.items():
    np.testing.assert_array_equal(encoded.labels[name], labels)
    np.testing.assert_array_equal(encoded.mask[name], decoded.mask[name])
  assert (encoded.names, encoded.splits) == (decoded.names, decoded.splits)


def test_a_jpeg_of_the_stored_size_keeps_its_bytes(tmp_path):
  turned = Image.Exif()
  turned[0x0112] = 6
  files = {
    'kept.jpg': lambda path: face(1).save(path, quality=70),
    'grey.jpg': lambda path: face(2).convert('L').save(path),
    'larger.jpg': lambda path: face(3, (48, 64)).save(path),
    'turned.jpg': lambda path: face(4, (32, 24)).save(path, exif=turned),
    'turned_square.jpg': lambda path: face(4).save(path, exif=turned),
    'png.png': lambda path: face(5).save(path),
    'cmyk.jpg': lambda path: face(6).convert('CMYK').save(path),
  }
  for name, save in files.items():
    save(tmp_path / name)
  lines: list[str] = []
  source = FromFiles([tmp_path / name for name in files])
  prepare_source(source, tmp_path / 'set', image_size=(32, 24), encoding='jpeg', log=lines.append)
  store = open_store(tmp_path / 'set')
  content, offsets = (tmp_path / 'set' / 'images.bin').read_bytes(), np.load(tmp_path / 'set' / 'offsets.npy')
  for row, name in enumerate(files):
    kept = content[offsets[row] : offsets[row + 1]] == (tmp_path / name).read_bytes()
    assert kept == (name in ('kept.jpg', 'grey.jpg')), name
    pixels, _, size = decode(tmp_path / name, (32, 24))
    assert np.abs(store.images[row].astype(int) - pixels).mean() < 4
    assert tuple(store.source_size[row]) == size
  assert 'JPEGs of quality 95, and 2 with the bytes of the source' in lines


def test_a_jpeg_that_is_cropped_is_encoded_anew(tmp_path):
  face(1).save(tmp_path / 'a.jpg')
  source = FromFiles([tmp_path / 'a.jpg'], crop=(0, 0, 12, 16))
  prepare_source(source, tmp_path / 'set', image_size=(32, 24), encoding='jpeg', log=print)
  assert open_store(tmp_path / 'set').schema['counts']['as_they_were'] == 0
  assert open_store(tmp_path / 'set').source_size.tolist() == [[12, 16]]


@pytest.mark.parametrize('kept', [0, 40, 0.6, None])
def test_a_broken_source_image_is_named(tmp_path, kept):
  face(1).save(path := tmp_path / 'a.jpg')
  content = path.read_bytes()
  path.unlink() if kept is None else path.write_bytes(content[: kept if kept > 1 else int(kept * len(content))])
  with pytest.raises(DataError, match=r'a\.jpg: (is no readable image|no such image)'):
    prepare_source(FromFiles([path]), tmp_path / 'set', image_size=(32, 24), encoding='jpeg', log=print)
  assert not (tmp_path / 'set').exists()


def test_the_same_source_gives_the_same_file_whatever_the_number_of_threads(tmp_path):
  for row in range(20):
    face(row, (24 + row, 40)).save(tmp_path / f'{row}.jpg')
  source = FromFiles(sorted(tmp_path.glob('*.jpg')))
  for workers in (1, 3):
    prepare_source(
      source, tmp_path / str(workers), image_size=(32, 24), encoding='jpeg', workers=workers, log=lambda _: None
    )
  assert open_store(tmp_path / '1').checksum == open_store(tmp_path / '3').checksum
  assert (tmp_path / '1' / 'images.bin').read_bytes() == (tmp_path / '3' / 'images.bin').read_bytes()


def test_a_set_of_version_1_is_read(copy, tmp_path):
  """What was written before images had their CRCs."""
  from mtl_jax.data.store.reader import checksum
  from mtl_jax.run.workdir import write_json

  store = copy('decoded')
  schema = {key: value for key, value in store.schema.items() if key not in ('encoding', 'checksum')}
  schema |= {'version': 1, 'files': {path: file for path, file in schema['files'].items() if path != 'crc32.npy'}}
  write_json(store.directory / 'schema.json', schema | {'checksum': checksum(schema)})
  (store.directory / 'crc32.npy').unlink()
  np.testing.assert_array_equal(open_store(store.directory).images, store.images)


# Reading.


@both
def test_rows_are_read_by_an_index_a_slice_or_an_array(stores, encoding):
  found = open_store(stores[encoding]).images
  whole = found[:]
  assert (whole.shape, whole.dtype, found.nbytes) == (found.shape, found.dtype, whole.nbytes)
  part = images.Images(((found.parts[0][0], range(10, 20)),))
  for index in (3, -1, slice(5, 9), slice(None, None, 7), np.array([4, 4, 0])):
    np.testing.assert_array_equal(found[index], whole[index])
  np.testing.assert_array_equal(part, whole[10:20])
  np.testing.assert_array_equal(part.take(np.array([9, 0])), whole[[19, 10]])
  assert found.take(np.array([], int)).shape == (0, 32, 32, 3)
  with pytest.raises(IndexError):
    found[60]


@both
@pytest.mark.parametrize('step', [0, 2**33])
def test_a_resident_batch_is_the_streamed_one_bit_for_bit(stores, encoding, step):
  split, mesh = train_split(open_store(stores[encoding])), sharding.make_mesh()
  order = make_sampler(3, sizes=(len(split),), rows=(16,))
  way = resident.resident_input(split, resident.rows_of_devices(order, mesh), mesh, reason='')
  positions = order.indices(step)
  found = jax.jit(way.fetch)(way.place(), jax.device_put(way.read(positions), sharding.by_rows(mesh)))
  expected = split.read(positions)
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(ours, theirs)


@both
def test_several_batches_read_at_once_are_those_read_one_by_one(stores, encoding):
  split = train_split(open_store(stores[encoding]))
  positions = (np.arange(24) * 7 % len(split)).reshape(3, 8)
  at_once = streamed_input(split, reason='').read(positions)
  for number in range(3):
    one = split.read(positions[number])
    for whole, part in zip(jax.tree.leaves(at_once), jax.tree.leaves(one), strict=True):
      np.testing.assert_array_equal(whole[number], part)


def test_memory_stays_flat_while_streaming(tmp_path):
  """Over three epochs of a set that decodes to 30 MB, no more than some batches are ever held."""
  for row in range(10):
    face(row, (200, 200)).save(tmp_path / f'{row}.jpg', quality=80)
  files = [tmp_path / f'{row}.jpg' for row in range(10)]

  class Repeated(FromFiles):
    def records(self):
      for copy, record in ((copy, record) for copy in range(25) for record in super(Repeated, self).records()):
        yield Record(f'{copy}-{record.name}', record.split, record.image, record.labels)

  prepare_source(Repeated(files), tmp_path / 'set', image_size=(200, 200), encoding='jpeg', log=print)
  split = train_split(open_store(tmp_path / 'set'))
  assert split.images.nbytes == 30_000_000
  batch = 8 * 200 * 200 * 3
  for first in range(0, 64, 8):  # Starts the threads.
    split.read(np.arange(first, first + 8))
  before = resident_kilobytes()
  order = make_sampler(0, sizes=(250,), rows=(8,))
  tracemalloc.start()
  try:
    for step in range(3 * 250 // 8):
      split.read(order.indices(step))
    current, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert current < batch / 4
  assert peak < 3 * batch
  assert resident_kilobytes() - before < 12_000


def resident_kilobytes() -> int:
  lines = Path('/proc/self/status').read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith('VmRSS:'))


# Corrupt records.


@both
def test_a_corrupt_image_is_named_once_counted_replaced_and_masked(copy, said, encoding):
  store = copy(encoding, rows=(3, 4, 7))
  split, intact = train_split(store), np.asarray(copy(encoding, name='intact').images)
  first, again = (split.read(np.array([2, 3, 4, 5, 7])) for _ in range(2))
  named = sorted(int(line.split('record ')[1].split(' ')[0]) for line in said)
  assert named == [3, 4, 7]
  assert all(store.names[row] in line for row, line in zip(sorted(named), sorted(said), strict=True))
  assert split.images.num_corrupt == 3
  np.testing.assert_array_equal(first['image'], intact[[2, 5, 5, 5, 8]])  # The next good one.
  np.testing.assert_array_equal(first['example_id'], [2, 3, 4, 5, 7])
  for mask in first['mask'].values():
    np.testing.assert_array_equal(mask.any(1), [True, False, False, True, False])
  assert not any(mask[[3, 4, 7]].any() for mask in split.mask.values())  # Metrics look there.
  for ours, theirs in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(ours, theirs)


@both
def test_a_corrupt_image_is_the_same_resident_and_streamed(copy, encoding):
  store = copy(encoding, rows=(0, 5, 9))
  split, mesh, positions = train_split(store), sharding.make_mesh(), np.arange(16)
  way = resident.resident_input(split, [np.arange(len(split))] * mesh.devices.size, mesh, reason='')
  found = jax.jit(way.fetch)(way.place(), jax.device_put(way.read(positions), sharding.by_rows(mesh)))
  expected = train_split(store).read(positions)
  assert not expected['mask']['attributes'][[0, 5, 9]].any()
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_the_last_image_of_a_split_is_replaced_by_its_first(copy):
  store = copy('jpeg')
  last = len(store.split('train')) - 1
  damage(store, [last])
  split = train_split(store)
  np.testing.assert_array_equal(*split.images[np.array([last, 0])])


def test_a_split_that_is_corrupt_throughout_is_refused(copy):
  store = copy('jpeg')
  damage(store, store.split('val'))
  with pytest.raises(DataError, match='every record of the split is corrupt'):
    load_split(store, 'val', store.tasks).read(np.array([0]))


@both
def test_a_file_cut_short_while_it_is_open_is_corrupt_from_there(copy, encoding):
  store = copy(encoding)
  path = store.directory / images.ENCODINGS[encoding]
  os.truncate(path, int(store.records.offsets[10]) + 5)
  split = train_split(store)
  batch = split.read(np.arange(14))
  assert sorted(store.records.corrupt) == list(range(10, len(split)))  # All were tried as replacements.
  assert all('too early' in reason for reason in store.records.corrupt.values())
  np.testing.assert_array_equal(batch['mask']['attributes'].any(1), np.arange(14) < 10)


def test_a_corrupt_image_of_a_mixture_is_masked_in_its_own_set(copy):
  first, second = copy('jpeg', rows=(1,), name='first'), copy('decoded', rows=(2,), name='second')
  both_sets = mixture.Mixture.of((first, second))
  split = mixture.load_split(both_sets, 'train', first.tasks)
  start = len(first.split('train'))
  batch = split.read(np.array([0, 1, start + 1, start + 2]))
  np.testing.assert_array_equal(batch['mask']['attributes'].any(1), [True, False, True, False])
  np.testing.assert_array_equal(batch['image'][3], second.images[3])
  assert split.images.num_corrupt == 2


@both
def test_past_the_share_the_set_is_refused_in_one_line(copy, encoding):
  store = copy(encoding, rows=(3, 8, 11), corrupt_share=2 / 60)
  split = train_split(store)
  split.read(np.array([3, 8]))
  with pytest.raises(DataError) as caught:
    split.read(np.array([11]))
  message = str(caught.value)
  assert '\n' not in message
  assert f'{store.directory / images.ENCODINGS[encoding]}: 3 of 60 records are corrupt, more than ' in message
  assert 'config.data.corrupt_share=0.0333333: record 3, 8, 11;' in message


# Runs.


@pytest.fixture
def run_config(tiny_config, stores):
  def make(directory: Path, **overrides) -> ConfigDict:
    net = {'model.backbone': 'convnet', 'model.width': 2, 'model.head': 'linear'}
    settings = {'train.steps': 6, 'eval.every_steps': 0, 'checkpoint.every_steps': 100, 'data.mode': 'streamed'}
    return tiny_config(**{**net, **settings, 'data.dir': str(directory), **overrides})

  return make


def losses(directory: Path) -> list[dict[str, float]]:
  lines = read_metrics(directory / 'metrics.jsonl')
  return [{name: value for name, value in line.items() if 'loss' in name or name == 'step'} for line in lines]


def test_a_run_over_corrupt_jpegs_is_the_same_resident_streamed_and_resumed(
  copy, run_config, tmp_path, monkeypatch, said
):
  store = copy('jpeg')
  damage(store, (0, 17, store.split('val').start))
  config = run_config(store.directory, **{'data.corrupt_share': 0.05})
  loop.train(config, tmp_path / 'streamed')
  assert 'warning: 3 corrupt images were replaced, their labels masked' in said
  loop.train(
    run_config(store.directory, **{'data.corrupt_share': 0.05, 'data.mode': 'resident'}), tmp_path / 'resident'
  )
  with monkeypatch.context() as patch:
    small_runs.at_step(patch, 3)
    with pytest.raises(Interrupted):
      loop.train(config, tmp_path / 'resumed')
  loop.train(config, tmp_path / 'resumed')
  assert losses(tmp_path / 'streamed') == losses(tmp_path / 'resident') == losses(tmp_path / 'resumed')
  assert [line['step'] for line in losses(tmp_path / 'streamed')] == list(range(1, 7))
  last = read_metrics(tmp_path / 'streamed' / 'metrics.jsonl')[-1]
  assert last['corrupt_images'] >= 1


def test_a_run_over_too_many_corrupt_images_ends_in_one_line(copy, run_config, tmp_path, refused):
  store = copy('jpeg', rows=range(30))
  (tmp_path / 'config.py').write_text(small_runs.file_of(run_config(store.directory)))
  told = refused('train', '--config', tmp_path / 'config.py', '--workdir', tmp_path / 'run')
  assert re.search(r'images.bin: \d+ of 60 records are corrupt, more than config.data.corrupt_share=0.001: ', told)
