"""The model beside this file in plain JAX; needs jax, numpy and safetensors.

predict, config = load()
predictions = predict(images)  # uint8 [b, h, w, 3], RGB -> {task: [b, n]}, named in config['tasks']
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from safetensors.numpy import load_file

from mtl_jax.evaluation.exported_loader import options


def conv(w, name, x, stride=1, padding=None):
  """A convolution, depthwise where its kernel `[p, q, in, out]` is; padded by half of that unless told otherwise."""
  kernel, bias = w[f'params/{name}/kernel'], w.get(f'params/{name}/bias', 0)
  padding = padding or [(size // 2, size // 2) for size in kernel.shape[:2]]
  form = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'), 'feature_group_count': x.shape[-1] // kernel.shape[2]}
  return lax.conv_general_dilated(x, kernel, (stride, stride), padding, **form) + bias


def dense(w, name, x):
  return x @ w[f'params/{name}/kernel'] + w.get(f'params/{name}/bias', 0)


def affine(w, name, x):
  return x * w[f'params/{name}/scale'] + w[f'params/{name}/bias']


def batch_norm(w, name, x):
  mean, var = (w[f'batch_stats/{name}/{part}'] for part in ('mean', 'var'))
  return (x - mean) * (lax.rsqrt(var + 1e-5) * w[f'params/{name}/scale']) + w[f'params/{name}/bias']


def group_norm(w, name, x):
  groups = max(n for n in range(1, 33) if x.shape[-1] % n == 0)
  parts = x.reshape(*x.shape[:3], groups, -1)
  mean, var = parts.mean((1, 2, 4), keepdims=True), parts.var((1, 2, 4), keepdims=True)
  return affine(w, f'{name}/group', ((parts - mean) * lax.rsqrt(var + 1e-5)).reshape(x.shape))


def no_norm(w, name, x):
  return x


def layer_norm(w, name, x):
  centred = x - x.mean(-1, keepdims=True)
  return affine(w, name, centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6))


def max_pool(x, size=2, pad=0):
  pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
  return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, 2, 2, 1), pads)


def convnet(w, name, x, config, norm):
  for i in (1, 2):
    x = max_pool(jax.nn.relu(norm(w, f'{name}/bn{i}', conv(w, f'{name}/conv{i}', x))))
  return x, x.reshape(len(x), -1)


def celeba_cnn(w, name, x, config, norm):
  for i, layers in enumerate((1, 2, 2, 2), 1):
    for j in range(1, layers + 1):
      x = jax.nn.relu(norm(w, f'{name}/bn{i}_{j}', conv(w, f'{name}/conv{i}_{j}', x)))
    x = max_pool(x) if i < 4 else x
  features = x.mean((1, 2))
  for j in (1, 2):
    features = jax.nn.relu(norm(w, f'{name}/bn5_{j}', dense(w, f'{name}/dense{j}', features)))
  return x, features


def residual(w, name, x, stride, norm):
  def layer(i, x, stride=1):
    return norm(w, f'{name}/bn{i}', conv(w, f'{name}/conv{i}', x, stride))

  deep = f'params/{name}/conv3/kernel' in w  # The stride is then that of the second convolution.
  y = layer(2, jax.nn.relu(layer(1, x, 1 if deep else stride)), stride if deep else 1)
  y = layer(3, jax.nn.relu(y)) if deep else y
  if f'params/{name}/downsample_conv/kernel' in w:
    x = norm(w, f'{name}/downsample_bn', conv(w, f'{name}/downsample_conv', x, stride))
  return jax.nn.relu(x + y)


def resnet(w, name, x, config, norm):
  x = jax.nn.relu(norm(w, f'{name}/bn1', conv(w, f'{name}/conv1', x, 2)))
  x = max_pool(x, 3, 1) if config['stem'] == 'imagenet' else x
  for stage, blocks in enumerate(config['blocks'], 1):
    for i in range(blocks):
      x = residual(w, f'{name}/layer{stage}_{i}', x, 2 if stage > 1 and i == 0 else 1, norm)
  return x, x.mean((1, 2))


def mobilenet(w, name, x, config, norm):
  def layer(own, x, part='', stride=1):
    return norm(w, f'{name}/{own}{part}bn', conv(w, f'{name}/{own}{part}conv', x, stride))

  x = jax.nn.relu6(layer('features_0/', x, stride=2 if config['stem'] == 'imagenet' else 1))
  for i, stride in enumerate((1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1), 1):
    own = f'features_{i}/'
    y = x if i == 1 else jax.nn.relu6(layer(own, x, 'expand_'))
    y = layer(own, jax.nn.relu6(layer(own, y, 'depthwise_', stride)), 'project_')
    x = x + y if stride == 1 and x.shape == y.shape else y
  x = jax.nn.relu6(layer('features_18/', x))
  return x, x.mean((1, 2))


def convnext(w, name, x, config, norm):
  x = conv(w, f'{name}/stem_conv', x, 4 if config['stem'] == 'imagenet' else 2, 'VALID')
  x = layer_norm(w, f'{name}/stem_norm', x)
  for stage, blocks in enumerate(config['blocks'], 1):
    if stage > 1:
      x = layer_norm(w, f'{name}/features_{2 * stage - 2}_norm', x)
      x = conv(w, f'{name}/features_{2 * stage - 2}_conv', x, 2, 'VALID')
    for i in range(blocks):
      own = f'{name}/features_{2 * stage - 1}_{i}'
      y = dense(w, f'{own}/expand', layer_norm(w, f'{own}/norm', conv(w, f'{own}/depthwise', x)))
      y = dense(w, f'{own}/project', jax.nn.gelu(y, approximate=False))
      x = x + w[f'params/{own}/layer_scale'] * y
  return tuple(layer_norm(w, f'{name}/final_norm', read) for read in (x, x.mean((1, 2))))


def transformer(w, name, x, config, norm):
  x = conv(w, f'{name}/patches', x, 16, 'SAME') + w[f'params/{name}/position']
  grid, width = x.shape[1:3], x.shape[-1]
  first = w[f'params/{name}/class_token'] + w[f'params/{name}/class_position']
  first = jnp.broadcast_to(first, (len(x), 1, width))
  x = jnp.concatenate([first, x.reshape(len(x), -1, width)], 1)
  for i in range(config['blocks'][0]):
    own = f'{name}/layer_{i}'
    parts = jnp.split(dense(w, f'{own}/attention_in', layer_norm(w, f'{own}/ln_1', x)), 3, -1)
    query, key, value = (part.reshape(*x.shape[:2], max(1, width // 64), -1) for part in parts)
    attended = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
    x = x + dense(w, f'{own}/attention_out', attended)
    y = jax.nn.gelu(dense(w, f'{own}/mlp_in', layer_norm(w, f'{own}/ln_2', x)), approximate=False)
    x = x + dense(w, f'{own}/mlp_out', y)
  x = layer_norm(w, f'{name}/final_norm', x)
  return x[:, 1:].reshape(len(x), *grid, width), x[:, 0]


def mlp(w, name, maps, features):
  return dense(w, f'{name}/output', jax.nn.relu(dense(w, f'{name}/hidden', features)))


def linear(w, name, maps, features):
  return dense(w, f'{name}/output', features)


def per_output(w, name, maps, features):
  hidden, output = (f'params/{name}/each/{layer}' for layer in ('hidden', 'output'))
  x = jnp.einsum('bf,kfh->kbh', features, w[f'{hidden}/kernel']) + w[f'{hidden}/bias'][:, None]
  return jnp.einsum('kbh,kho->bk', jax.nn.relu(x), w[f'{output}/kernel']) + w[f'{output}/bias'][:, 0]


def doubled(w, name, maps):
  for i in range(3):
    if f'params/{name}/doubled{i}/kernel' in w:
      maps = jax.nn.relu(conv(w, f'{name}/doubled{i}', maps.repeat(2, 1).repeat(2, 2)))
  return maps


def soft_argmax(w, name, maps, features):
  heat = dense(w, f'{name}/heat', jax.nn.relu(dense(w, f'{name}/hidden', doubled(w, name, maps))))
  share = jax.nn.softmax(heat, (1, 2))
  y, x = ((jnp.arange(size)[:, None] + 0.5) / size for size in heat.shape[1:3])
  places = jnp.stack([(share.sum(1) * x).sum(1), (share.sum(2) * y).sum(1)], -1).reshape(len(maps), -1)
  return (places - w[f'params/{name}/offset']) * w[f'params/{name}/scale']


def decoder(w, name, maps, features):
  return dense(w, f'{name}/output', doubled(w, name, jax.nn.relu(dense(w, f'{name}/hidden', maps))))


def binary(x, task):
  return jax.nn.sigmoid(x)


def categorical(x, task):
  return jax.nn.softmax(x)


def standardized(x, task):
  return x * np.float32(task['std']) + np.float32(task['mean'])


def ordinal(x, task):
  falls = jnp.cumsum(jax.nn.softplus(x[:, 1:]) + 1e-3, axis=1)
  reached = jax.nn.sigmoid(x[:, :1] - jnp.pad(falls, ((0, 0), (1, 0))))
  first, last = jnp.ones_like(x[:, :1]), jnp.zeros_like(x[:, :1])
  return -jnp.diff(jnp.concatenate([first, reached, last], axis=1), axis=1)


def dense_map(x, task):
  shape = (*task['shape'][1:], x.shape[-1])
  return jax.vmap(lambda one: jax.image.resize(one, shape, 'bilinear'))(x).argmax(-1).astype(jnp.uint8)


BACKBONES = {one.__name__: one for one in (convnet, celeba_cnn, resnet, mobilenet, convnext, transformer)}
NORMS = {one.__name__: one for one in (batch_norm, group_norm, affine, no_norm)}
HEADS = {one.__name__: one for one in (mlp, linear, per_output, soft_argmax, decoder)}
KINDS = {one.__name__: one for one in (binary, categorical, standardized, ordinal, dense_map)}


def apply(w, images, config):
  """Each task's predictions for uint8 images `[b, h, w, 3]`: a pure function of the weights by name."""
  x = (images.astype(jnp.float32) / 255 - np.float32(config['mean'])) / np.float32(config['std'])
  read = {}
  for name in sorted({task['backbone'] for task in config['tasks']}):
    maps, features = BACKBONES[config['backbone']](w, name, x, config, NORMS[config['norm']])
    for i in range(config['trunk']):
      features = jax.nn.relu(dense(w, f'{name}/trunk_layers_{i}', features))
    read[name] = maps, features
  outputs = {task['name']: HEADS[task['head']](w, task['weights'], *read[task['backbone']]) for task in config['tasks']}
  return {task['name']: KINDS[task['predicts']](outputs[task['name']], task) for task in config['tasks']}


def load(folder=Path(__file__).parent):
  """The predictions as a function of images, compiled once for each number of them, and what config.json holds."""
  config = json.loads((Path(folder) / 'config.json').read_text())
  weights = jax.device_put(load_file(Path(folder) / 'model.safetensors'))
  compiled = jax.jit(lambda w, images: apply(w, images, config), compiler_options=options())
  shape = (*config['image_size'], 3)

  def predict(images):
    if images.dtype != np.uint8 or images.shape[1:] != shape:
      raise ValueError(f'images must be uint8 [b, {shape[0]}, {shape[1]}, 3]: {images.dtype} {images.shape}')
    return compiled(weights, images)

  return predict, config
