"""Backbones with PyTorch's weights give PyTorch's features, through the files that PyTorch writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import DataError
from mtl_jax.models import convnet, multitask, normalization, pretrained, vit

torch = pytest.importorskip('torch')
import torch_models  # noqa: E402

# Height and width of the images: small, and not square where the network allows, which a swap would not survive.
SIZES = {
  'resnet18': (64, 96),
  'resnet34': (64, 64),
  'resnet50': (64, 32),
  'mobilenet_v2': (64, 96),
  'convnext_tiny': (64, 32),
  'vit_s16': (32, 32),
  'vit_b16': (32, 32),
  'convnet': (12, 20),
  'celeba_cnn': (32, 24),
}
# torchvision's figures; of ViT-S/16 timm's.
PUBLISHED = {
  'resnet18': 11_689_512,
  'resnet34': 21_797_672,
  'resnet50': 25_557_032,
  'mobilenet_v2': 3_504_872,
  'convnext_tiny': 28_589_128,
  'vit_s16': 22_050_664,
  'vit_b16': 86_567_656,
}


def reference(name: str, **kwargs):
  return getattr(torch_models, name)(**kwargs)


def published_backbone(name: str, **kwargs):
  make = multitask.BACKBONES[name]
  return make(stem='imagenet', **kwargs) if hasattr(make(), 'stem') else make(**kwargs)


def features(backbone, variables, images) -> np.ndarray:
  return np.asarray(jax.jit(lambda v, x: backbone.apply(v, x, train=False))(variables, images))


def pytorch_features(network, images: np.ndarray) -> np.ndarray:
  with torch.no_grad():
    return network.forward_features(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()


# Fewer layers of a kind there are many of, for networks that are slow to compile or large.
SHORTER = {
  'convnext_tiny': ({'stage_sizes': (1, 1, 2, 1)}, {'sizes': (1, 1, 2, 1)}),
  'vit_s16': ({'depth': 4}, {'depth': 4, 'image_size': 32}),
  'vit_b16': ({'depth': 2, 'groups': 2}, {'depth': 2, 'image_size': 32}),
}


@pytest.mark.parametrize('name', SIZES)
def test_features_equal_pytorchs_with_random_weights(name, tmp_path, monkeypatch):
  our_options, their_options = SHORTER.get(name, ({}, {}))
  for without in (convnet.ConvNet, convnet.CelebACNN):
    monkeypatch.setattr(without, 'torchvision_names', ())  # It has none, but the same names do.
  theirs = torch_models.randomized(reference(name, **their_options))
  torch.save(theirs.state_dict(), tmp_path / 'weights.pth')
  images = np.random.default_rng(0).normal(size=(2, *SIZES[name], 3)).astype(np.float32)
  expected = pytorch_features(theirs, images)
  ours = published_backbone(name, **our_options)
  loaded = pretrained.load(tmp_path / 'weights.pth', ours, image_size=SIZES[name])
  found = features(ours, loaded, jnp.array(images))
  assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
  assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max()  # They do depend on the image.


@pytest.mark.parametrize('name', PUBLISHED)
def test_backbones_and_the_reference_networks_have_the_published_parameters(name):
  with torch.device('meta'):
    theirs = reference(name)
  assert sum(p.numel() for p in theirs.parameters()) == PUBLISHED[name]
  ours = published_backbone(name)
  names = {pretrained.torchvision_name(ours, path) for path in pretrained.expected(ours, (224, 224))}
  theirs = [name for name in theirs.state_dict() if not name.endswith('num_batches_tracked')]
  assert names == set(theirs[:-2])  # All but the classifier's weight and bias.


def test_position_embeddings_are_resized_to_the_image_and_old_names_are_known(tmp_path):
  small = vit.VisionTransformer(width=64, depth=1, groups=1)
  rng = np.random.default_rng(0)
  with torch.device('meta'):
    shapes = {k: v.shape for k, v in torch_models.VisionTransformer(64, 64, depth=1).state_dict().items()}
  old = {k.replace('mlp.0', 'mlp.linear_1').replace('mlp.3', 'mlp.linear_2'): s for k, s in shapes.items()}
  state = {name: torch.tensor(rng.normal(size=shape), dtype=torch.float32) for name, shape in old.items()}
  rows, columns = np.mgrid[:4, :4]
  positions = np.concatenate([[7], (10 * rows + columns).ravel()])
  state['encoder.pos_embedding'] = torch.tensor(positions, dtype=torch.float32)[None, :, None].expand(1, 17, 64).clone()
  torch.save(state, tmp_path / 'w.pth')
  load = lambda size: pretrained.load(tmp_path / 'w.pth', small, image_size=size)['params']  # noqa: E731
  same = load((64, 64))
  np.testing.assert_array_equal(same['position'][2, 3], np.full(64, 23))
  np.testing.assert_array_equal(same['class_position'], np.full(64, 7))
  second = state['encoder.layers.encoder_layer_0.mlp.linear_2.weight']
  np.testing.assert_array_equal(same['layer_0']['mlp_out']['kernel'].T, second)
  larger = load((128, 64))['position']  # Eight rows: pixels of half the size, centred a quarter off.
  np.testing.assert_allclose(larger[3:5, 0, 0], [12.5, 17.5], atol=0.3)
  np.testing.assert_allclose(larger[2, :, 0] - larger[2, 0, 0], np.arange(4), atol=1e-4)


def test_a_narrower_transformer_is_refused_by_a_tensors_name(tmp_path):
  torch.save(reference('vit_s16', image_size=32, depth=1).state_dict(), tmp_path / 'w.pth')
  with pytest.raises(DataError, match=r'(conv_proj|encoder)\S* of VisionTransformer has shape'):
    pretrained.load(tmp_path / 'w.pth', vit.vit_b16(depth=1), image_size=(32, 32))


def test_batch_norm_learns_its_running_mean_at_torchvisions_momentum():
  """The variance differs: PyTorch's running one is unbiased."""
  x = np.random.default_rng(0).normal(2, 3, size=(4, 5, 5, 3)).astype(np.float32)
  theirs = torch.nn.BatchNorm2d(3)
  expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
  module = normalization.make('batch', rows=0, train=True, dtype=jnp.float32)()
  ours = jnp.asarray(x)
  found, state = module.apply(module.init(jax.random.key(0), ours), ours, mutable=['batch_stats'])
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(state['batch_stats']['mean'], theirs.running_mean.numpy(), rtol=1e-5)
  count = x[..., 0].size
  unbiased = 0.9 + (np.asarray(state['batch_stats']['var']) - 0.9) * count / (count - 1)
  np.testing.assert_allclose(unbiased, theirs.running_var.numpy(), rtol=1e-5)
