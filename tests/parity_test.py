"""Backbones with PyTorch's weights give PyTorch's features, through the files that PyTorch writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models import multitask, normalization, pretrained

torch = pytest.importorskip('torch')
import torch_models  # noqa: E402

# Height and width of the images: small, and not square, which a swap of the two would not survive.
SIZES = {'resnet18': (64, 96), 'resnet34': (64, 64), 'resnet50': (64, 32), 'mobilenet_v2': (64, 96)}
PUBLISHED = {
  'resnet18': 11_689_512,
  'resnet34': 21_797_672,
  'resnet50': 25_557_032,
  'mobilenet_v2': 3_504_872,
}


def imagenet_backbone(name: str):
  make = multitask.BACKBONES[name]
  has_stem = hasattr(make(), 'stem')
  return make(stem='imagenet') if has_stem else make()


def features(backbone, variables, images) -> np.ndarray:
  return np.asarray(jax.jit(lambda v, x: backbone.apply(v, x, train=False))(variables, images))


@pytest.mark.parametrize('name', SIZES)
def test_features_equal_pytorchs_with_random_weights(name, tmp_path):
  torch.manual_seed(0)
  theirs = torch_models.randomized(getattr(torch_models, name)())
  torch.save(theirs.state_dict(), tmp_path / 'weights.pth')
  images = np.random.default_rng(0).normal(size=(2, *SIZES[name], 3)).astype(np.float32)
  with torch.no_grad():
    expected = theirs.forward_features(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
  ours = imagenet_backbone(name)
  found = features(ours, pretrained.load(tmp_path / 'weights.pth', ours, image_size=SIZES[name]), jnp.array(images))
  assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
  assert expected.std(axis=0).min() > 0 or expected.std() > 0.01  # The images do differ in them.


@pytest.mark.parametrize('name', SIZES)
def test_the_reference_networks_have_the_published_number_of_parameters(name):
  with torch.device('meta'):
    assert sum(p.numel() for p in getattr(torch_models, name)().parameters()) == PUBLISHED[name]


def test_batch_norm_learns_its_running_mean_at_torchvisions_momentum():
  """The variance differs: PyTorch's running one is unbiased."""
  x = np.random.default_rng(0).normal(2, 3, size=(4, 5, 5, 3)).astype(np.float32)
  theirs = torch.nn.BatchNorm2d(3)
  expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
  module = normalization.make('batch', rows=0, train=True, dtype=jnp.float32)()
  (found, state) = module.apply(module.init(jax.random.key(0), x), x, mutable=['batch_stats'])
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(state['batch_stats']['mean'], theirs.running_mean.numpy(), rtol=1e-5)
  count = x[..., 0].size
  unbiased = 0.9 + (np.asarray(state['batch_stats']['var']) - 0.9) * count / (count - 1)
  np.testing.assert_allclose(unbiased, theirs.running_var.numpy(), rtol=1e-5)
