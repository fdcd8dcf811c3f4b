"""Files of weights are read without PyTorch and without running them, and end in every copy of the backbone."""

import contextlib
import io
import os
import pickle
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from mtl_jax.data.input import augment, mixture
from mtl_jax.errors import ConfigError, DataError
from mtl_jax.models import mobilenet, multitask, own_weights, pretrained, resnet, torch_file
from mtl_jax.run.checkpoint import Checkpoints
from mtl_jax.training import building, loop

SIZE = (32, 32)
REAL = Path(os.environ.get('MTL_JAX_WEIGHTS', '')) / 'mobilenet_v2-b0353104.pth'


@pytest.fixture(scope='module')
def backbone():
  return resnet.ResNet(stage_sizes=(1, 1), block=resnet.BasicBlock, width=4, stem='imagenet')


@pytest.fixture(scope='module')
def named(backbone):
  """Weights for it under torchvision's names, in PyTorch's order of axes, with a classifier besides."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: backbone.init(jax.random.key(0), jnp.zeros((1, *SIZE, 3)), train=False))
  variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
  return as_torchvision_has_it(backbone, variables) | {
    'fc.weight': np.zeros((1000, 8), np.float32),
    'bn1.num_batches_tracked': np.array(7),
  }


def as_torchvision_has_it(backbone, variables) -> dict[str, np.ndarray]:
  """Variables of a net of convolutions and norms by torchvision's names, in PyTorch's order of axes."""
  flat = {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(variables).items()}
  return {
    pretrained.torchvision_name(backbone, path): leaf.transpose(3, 2, 0, 1).copy() if leaf.ndim == 4 else leaf
    for path, leaf in flat.items()
  }


@pytest.fixture(scope='module')
def good(named, tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'good.safetensors'
  save_file(named, path)
  return path


def load(path, backbone):
  return pretrained.load(path, backbone, image_size=SIZE)


def refusal(path, backbone, error=DataError) -> str:
  with pytest.raises(error) as caught:
    load(path, backbone)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_weights_go_where_their_names_say_with_axes_in_our_order(backbone, named, good):
  params, stats = (load(good, backbone)[name] for name in ('params', 'batch_stats'))
  kernel = params['layer2_0']['downsample_conv']['kernel']
  np.testing.assert_array_equal(kernel[0, 0], named['layer2.0.downsample.0.weight'][:, :, 0, 0].T)
  np.testing.assert_array_equal(params['conv1']['kernel'][2, 5, 1], named['conv1.weight'][:, 1, 2, 5])
  np.testing.assert_array_equal(params['bn1']['scale'], named['bn1.weight'])
  np.testing.assert_array_equal(stats['layer1_0']['bn2']['var'], named['layer1.0.bn2.running_var'])


def test_tensors_that_no_layer_reads_are_listed(backbone, good, said):
  load(good, backbone)
  assert said[-1].endswith('unused: fc.weight')


def test_missing_tensors_are_listed(backbone, named, tmp_path):
  save_file({k: v for k, v in named.items() if k not in ('bn1.bias', 'conv1.weight')}, tmp_path / 'w.safetensors')
  told = refusal(tmp_path / 'w.safetensors', backbone)
  assert told.endswith('2 tensors of ResNet are missing: bn1.bias, conv1.weight')


def test_a_tensor_of_another_shape_is_refused_by_its_name(backbone, named, tmp_path):
  save_file(named | {'conv1.weight': np.zeros((4, 3, 3, 3), np.float32)}, tmp_path / 'w.safetensors')
  assert 'conv1.weight of ResNet has shape (4, 3, 3, 3) in the file' in refusal(tmp_path / 'w.safetensors', backbone)


def test_a_file_of_another_architecture_gets_one_line(good):
  told = refusal(good, mobilenet.MobileNetV2())
  assert 'is of another architecture: it holds 0 of the 260 tensors of MobileNetV2' in told


def test_a_missing_file_and_one_that_is_no_weights_are_refused(backbone, tmp_path):
  assert 'no file' in refusal(tmp_path / 'none.pth', backbone)
  for name in ('text.pth', 'text.safetensors'):
    (tmp_path / name).write_text('these are no weights')
    assert 'cannot be read' in refusal(tmp_path / name, backbone)


def test_weights_of_batch_norm_do_not_go_into_another_norm(good):
  other = resnet.ResNet(stage_sizes=(1, 1), block=resnet.BasicBlock, width=4, stem='imagenet', norm='none')
  assert 'config.model.norm' in refusal(good, other, ConfigError)


# PyTorch's files.


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_both_formats_of_pytorch_give_its_numbers_and_need_no_pytorch(zipped, tmp_path, monkeypatch):
  torch = pytest.importorskip('torch')
  whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
  tensors = OrderedDict(
    plain=whole,
    transposed=whole.T,
    part=whole[1:3, ::2],
    scalar=torch.tensor(3),
    empty=torch.zeros(0, 5),
    half=torch.tensor([1.5, -2], dtype=torch.half),
    bfloat16=torch.tensor([1.5, -2], dtype=torch.bfloat16),
    double=torch.tensor([1e-300], dtype=torch.double),
    flags=torch.tensor([True, False]),
    learned=torch.nn.Parameter(torch.ones(2)),
  )
  torch.save(tensors, tmp_path / 'w.pth', _use_new_zipfile_serialization=zipped)
  with monkeypatch.context() as context:
    context.setitem(sys.modules, 'torch', None)  # Importing it would fail.
    found = torch_file.tensors(tmp_path / 'w.pth')
    read = {name: tensor.read() for name, tensor in found.items()}
  assert read.keys() == tensors.keys()
  for name, tensor in tensors.items():
    assert found[name].shape == tuple(tensor.shape)
    values = read[name]
    assert values.dtype.name == str(tensor.dtype).removeprefix('torch.')
    np.testing.assert_array_equal(values.astype(float), tensor.detach().double().numpy())


def test_a_checkpoint_that_holds_weights_beside_other_things_is_read(backbone, named, good, tmp_path):
  torch = pytest.importorskip('torch')
  state = {f'module.{name}': torch.tensor(value) for name, value in named.items()}
  torch.save({'epoch': 3, 'optimizer': {'lr': 0.1}, 'state_dict': state}, tmp_path / 'checkpoint.pth')
  jax.tree.map(np.testing.assert_array_equal, load(tmp_path / 'checkpoint.pth', backbone), load(good, backbone))


class Malicious:
  """Writes a file when it is unpickled."""

  def __init__(self, witness: Path):
    self.witness = witness

  def __reduce__(self):
    return (os.mkdir, (str(self.witness),))


def write_pickle(path: Path, content: bytes, *, zipped: bool) -> None:
  if not zipped:
    head = [pickle.dumps(value, protocol=2) for value in (torch_file.LEGACY_MAGIC, 1001, {'little_endian': True})]
    path.write_bytes(b''.join([*head, content]))
    return
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', content)


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_a_malicious_pickle_is_refused_and_not_run(zipped, tmp_path, backbone):
  witness, path = tmp_path / 'was here', tmp_path / 'w.pth'
  content = pickle.dumps({'conv1.weight': Malicious(witness)}, protocol=2)
  write_pickle(path, content, zipped=zipped)
  told = refusal(path, backbone)
  assert 'refused' in told
  assert f'{os.mkdir.__module__}.mkdir' in told
  assert not witness.exists()
  pickle.loads(content)
  assert witness.exists()  # The file would have done it.


@pytest.mark.parametrize(
  'name',
  ['builtins eval', 'torch load', 'torch._utils _rebuild_device_tensor_from_numpy', 'numpy.core.multiarray scalar'],
)
def test_names_that_tensors_do_not_need_are_refused(name, tmp_path, backbone):
  module, attribute = name.split()
  write_pickle(tmp_path / 'w.pth', f'c{module}\n{attribute}\n.'.encode(), zipped=True)
  assert f'asks for {module}.{attribute}' in refusal(tmp_path / 'w.pth', backbone)


@pytest.mark.parametrize(
  ('shape', 'strides', 'offset'), [((5,), (1,), 0), ((2,), (1,), 3), ((2,), (-1,), 1), ((9, 9), (0, 0), 0)]
)
def test_a_tensor_outside_its_storage_is_refused(shape, strides, offset, tmp_path):
  view = torch_file.View(torch_file.Storage('0', np.dtype('float32'), 4), offset, shape, strides)
  with pytest.raises(ValueError, match='storage'):
    view.of(np.zeros(4, np.float32))


def test_a_pickle_cannot_alter_what_it_calls():
  """BUILD would set attributes of what a pickle holds."""
  code = b'ccollections\nOrderedDict\n}X\x04\x00\x00\x00codeK\x01sb.'
  call = torch_file.TensorUnpickler(io.BytesIO(code)).load()
  assert call is torch_file.CALLS['collections', 'OrderedDict']
  assert not hasattr(call, 'code')


def test_a_file_cut_short_is_refused(tmp_path, backbone):
  torch = pytest.importorskip('torch')
  for zipped in (True, False):
    torch.save({'a': torch.zeros(99)}, tmp_path / 'whole.pth', _use_new_zipfile_serialization=zipped)
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'whole.pth').read_bytes()[:-100])
    assert 'cannot be read' in refusal(tmp_path / 'cut.pth', backbone)


# Hostile and damaged files.


def pickled_view(offset=0, shape=(2,), strides=(1,)) -> bytes:
  """The pickle of `{'conv1.weight': a tensor}` with these numbers, whatever they are."""
  storage = b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ'
  rest = b''.join(pickle.dumps(value, protocol=2)[2:-1] for value in (offset, shape, strides))
  tensor = b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + rest + b'tR'
  return b'\x80\x02}X\x0c\x00\x00\x00conv1.weight' + tensor + b's.'


def read_all(path: Path) -> None:
  for tensor in pretrained.read(path).values():
    tensor.read()


@pytest.mark.parametrize(
  'view',
  [{'shape': 'ab'}, {'shape': (1.5,)}, {'shape': None}, {'strides': ('x',)}, {'strides': (1, 1)}, {'offset': 0.5},
   {'offset': None}, {'shape': ((2,),)}, {'shape': (2**70,)}, {'shape': (0, 2**62)}],
  ids=str,
)  # fmt: skip
def test_a_tensor_of_no_sound_shape_stride_or_offset_is_refused(view, tmp_path):
  path = tmp_path / 'w.pth'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', pickled_view(**view))
    archive.writestr('archive/data/0', bytes(8))
  with pytest.raises(DataError, match=r'w\.pth: cannot be read'):
    read_all(path)


def changed_entry(path: Path, *, flag: int = 0, compression: int = zipfile.ZIP_STORED) -> None:
  """A file of one tensor whose storage's entry says of itself that it is encrypted, or compressed in some way."""
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', pickled_view())
    archive.writestr('archive/data/0', bytes(8))
    archive.filelist[-1].flag_bits |= flag
    archive.filelist[-1].compress_type = compression


@pytest.mark.parametrize('entry', [{'flag': 1}, {'compression': 99}, {'compression': zipfile.ZIP_DEFLATED}], ids=str)
def test_an_encrypted_or_compressed_entry_is_refused(entry, tmp_path):
  changed_entry(tmp_path / 'w.pth', **entry)
  with pytest.raises(DataError, match=r'archive/data/0 is compressed or encrypted'):
    read_all(tmp_path / 'w.pth')
  changed_entry(tmp_path / 'w.pth')
  read_all(tmp_path / 'w.pth')


BOMBS = {
  'a far place of the memo': b'\x80\x02}r\xff\xff\xff\x7f',
  'a long text': b'\x80\x02X\xff\xff\xff\x7fabc.',
  'many dictionaries': b'\x80\x02(' + b'}' * 2**20,
  'a deep key': b'\x80\x02})' + b'\x85' * 500_000 + b'K\x01s.',
}


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('bomb', BOMBS)
def test_a_small_file_takes_little_memory(bomb, zipped, tmp_path):
  write_pickle(tmp_path / 'w.pth', BOMBS[bomb], zipped=zipped)
  assert peak_of_refusal(tmp_path / 'w.pth') < 100e6


def test_what_is_compressed_is_not_unpacked(tmp_path):
  with zipfile.ZipFile(tmp_path / 'w.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('archive/data.pkl', bytes(200_000_000))
  assert peak_of_refusal(tmp_path / 'w.pth') < 10e6


def peak_of_refusal(path: Path) -> int:
  """The bytes that reading takes at most before the file is refused."""
  tracemalloc.start()
  try:
    with pytest.raises(DataError):
      read_all(path)
    return tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value, backbone, named, tmp_path):
  save_file(named | {'bn1.bias': np.array([0, 1, value, 3], np.float32)}, tmp_path / 'w.safetensors')
  assert 'bn1.bias of ResNet holds NaN or infinite numbers' in refusal(tmp_path / 'w.safetensors', backbone)


def test_types_of_safetensors_that_are_not_read_are_refused(tmp_path):
  torch, save = pytest.importorskip('torch'), pytest.importorskip('safetensors.torch').save_file
  save({'a': torch.zeros(3, dtype=torch.float8_e4m3fn)}, tmp_path / 'w.safetensors')
  with pytest.raises(DataError, match=r'w\.safetensors: cannot be read as a safetensors file \(a\)'):
    read_all(tmp_path / 'w.safetensors')


@pytest.fixture(scope='module')
def sound_files(tmp_path_factory) -> dict[str, bytes]:
  """A small file of weights in each format, by its suffix."""
  torch, folder = pytest.importorskip('torch'), tmp_path_factory.mktemp('sound')
  tensors = OrderedDict(a=torch.arange(6.0).reshape(2, 3).T, b=torch.ones(2, dtype=torch.half), c=torch.tensor(7))
  torch.save(tensors, folder / 'zip.pth')
  torch.save({'state_dict': tensors}, folder / 'legacy.pth', _use_new_zipfile_serialization=False)
  save_file({name: tensor.contiguous().numpy() for name, tensor in tensors.items()}, folder / 'w.safetensors')
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('name', ['zip.pth', 'legacy.pth', 'w.safetensors'])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_load_or_give_one_error_in_little_memory(name, sound_files, tmp_path, data):
  content = bytearray(sound_files[name])
  for _ in range(data.draw(st.integers(1, 4))):
    first, length = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 12))
    content[first : first + length] = data.draw(st.binary(max_size=12))
  path = tmp_path / name
  path.write_bytes(content)
  tracemalloc.start()
  try:
    with contextlib.suppress(DataError):
      read_all(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
  finally:
    tracemalloc.stop()


# Into the model.


def test_every_copy_of_the_backbone_and_of_a_part_of_it_gets_the_weights():
  loaded = {
    'params': {'conv1': {'kernel': np.ones((3, 2))}, 'last': {'kernel': np.full((2, 2), 2.0)}},
    'batch_stats': {},
  }
  zeros = lambda *shape: {'kernel': np.zeros(shape)}  # noqa: E731
  params = {
    'shared': {
      'backbone': {'conv1': zeros(3, 2), 'last': zeros(2, 2)},
      'backbone_stacked': {'conv1': zeros(5, 3, 2)},
      'backbone_expert': {'last': zeros(2, 2)},
      'backbone_other': {'last': zeros(7, 2)},
    },
    'head_a': {'output': zeros(2, 2)},
  }
  placed = own_weights.place({'params': params}, own_weights.of_backbone(loaded))['params']
  sums = jax.tree.map(lambda leaf: float(leaf.sum()), placed)
  assert sums['shared'] == {
    'backbone': {'conv1': {'kernel': 6.0}, 'last': {'kernel': 8.0}},
    'backbone_stacked': {'conv1': {'kernel': 30.0}},
    'backbone_expert': {'last': {'kernel': 8.0}},
    'backbone_other': {'last': {'kernel': 0.0}},
  }
  assert sums['head_a'] == {'output': {'kernel': 0.0}}
  with pytest.raises(DataError, match='holds nothing of this model'):
    own_weights.place({'params': {'shared': {'backbone': {'conv1': zeros(3, 3)}}}}, own_weights.of_backbone(loaded))


def test_a_run_starts_from_the_weights_and_resumes_without_their_file(tiny_config, tmp_path, monkeypatch):
  shallow = partial(resnet.ResNet, stage_sizes=(1,), block=resnet.BasicBlock)
  monkeypatch.setitem(multitask.BACKBONES, 'resnet18', shallow)
  backbone = shallow(width=4, stem='imagenet')
  variables = jax.jit(lambda: backbone.init(jax.random.key(3), jnp.zeros((1, *SIZE, 3)), train=False))()
  weights = tmp_path / 'w.safetensors'
  save_file(as_torchvision_has_it(backbone, variables), weights)
  net = {'model.backbone': 'resnet18', 'model.weights': str(weights)}
  config = tiny_config('landmarks', **net, **{'optimizer.ema_decay': 0.9})
  run = building.build(config, mixture.open_data(config.data))
  checkpoints = Checkpoints(tmp_path)
  state, clock = loop.begin_state(run, checkpoints)
  for start in (state.variables, state.average):
    for collection in ('params', 'batch_stats'):
      jax.tree.map(np.testing.assert_array_equal, start[collection]['shared']['backbone'], variables[collection])
  clock.step = 1
  checkpoints.save(state, clock)
  weights.unlink()
  restored, clock = loop.begin_state(run, checkpoints)
  checkpoints.close()
  assert clock.step == 1
  jax.tree.map(np.testing.assert_array_equal, restored.variables, state.variables)


def test_the_real_weights_know_a_palace_when_they_see_one():
  if not REAL.is_file():
    pytest.skip(f'MTL_JAX_WEIGHTS names no folder with {REAL.name}')
  images = pytest.importorskip('sklearn.datasets')
  picture = Image.fromarray(images.load_sample_image('china.jpg')).resize((384, 256), Image.Resampling.BILINEAR)
  image = np.asarray(picture.crop((80, 16, 304, 240)))[None]
  backbone = mobilenet.MobileNetV2(stem='imagenet')
  loaded = pretrained.load(REAL, backbone, image_size=(224, 224))
  apply = jax.jit(lambda v, x: backbone.apply(v, x, train=False))
  found = np.asarray(apply(loaded, augment.normalize(jnp.asarray(image))))
  classifier = torch_file.tensors(REAL)
  logits = found @ classifier['classifier.1.weight'].read().T + classifier['classifier.1.bias'].read()
  assert logits.argmax() == 698  # ImageNet's palace.
