"""Losses per label, shape [b, k], and the one place where they are averaged: over the labels that exist."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float


def binary_cross_entropy(logits: Float[Array, 'b k'], labels: Float[Array, 'b k']) -> Float[Array, 'b k']:
  """Cross-entropy of Bernoulli logits in nats; labels are 0 or 1."""
  return optax.sigmoid_binary_cross_entropy(logits, labels)


def squared_error(outputs: Float[Array, 'b k'], targets: Float[Array, 'b k']) -> Float[Array, 'b k']:
  """Squared difference, in the squared unit of the targets."""
  return jnp.square(outputs - targets)


def absolute_error(outputs: Float[Array, 'b k'], targets: Float[Array, 'b k']) -> Float[Array, 'b k']:
  """Absolute difference, in the unit of the targets."""
  return jnp.abs(outputs - targets)


def smooth_l1(outputs: Float[Array, 'b k'], targets: Float[Array, 'b k']) -> Float[Array, 'b k']:
  """`x^2 / 2` up to an error x of 1 and `|x| - 1/2` beyond (Girshick 2015, there too in units of the spread)."""
  return optax.huber_loss(outputs, targets, delta=1.0)


# Width and curvature of the wing loss, in the unit of the targets. The paper's are 10 and 2 pixels of a 256-pixel face.
# Landmarks are learned in units of their spread, which is 10 such pixels where it is 4 % of the image's side: on MTFL
# it is 3 to 8 %, on aligned faces 1 to 4 %.
WING_WIDTH, WING_CURVATURE = 1.0, 0.2


def wing(outputs: Float[Array, 'b k'], targets: Float[Array, 'b k']) -> Float[Array, 'b k']:
  """`w log(1 + |x| / e)` up to an error x of w, and `|x| - c` beyond, c joining the two (Feng et al. 2018)."""
  error, w, e = jnp.abs(outputs - targets), WING_WIDTH, WING_CURVATURE
  return jnp.where(error < w, w * jnp.log1p(error / e), error - (w - w * jnp.log1p(w / e)))


# Of coordinates; a new one is a function of outputs and targets, and a line.
COORDINATE_LOSSES = {'squared': squared_error, 'l1': absolute_error, 'smooth_l1': smooth_l1, 'wing': wing}


def categorical_cross_entropy(logits: Float[Array, 'b c'], labels: Float[Array, 'b 1']) -> Float[Array, 'b 1']:
  """Cross-entropy of categorical logits in nats; labels are class numbers."""
  classes = labels[:, 0].astype(jnp.int32)
  return optax.softmax_cross_entropy_with_integer_labels(logits, classes)[:, None]


def masked_mean(values: Float[Array, '*b'], mask: Bool[Array | np.ndarray, '*b']) -> Float[Array, '']:
  """Mean of the values under a True mask, 0 where there is none; what lies under a False is never read.

  On a mesh the sum and the count both run over the global batch, so the result does not depend on how
  the labels happen to be spread over devices.
  """
  total = jnp.where(mask, values, 0).sum()
  return total / jnp.maximum(mask.sum(), 1)


def guard(labels: Float[Array | np.ndarray, '*b'], mask: Bool[Array | np.ndarray, '*b']) -> Float[Array, '*b']:
  """Labels with 0 where there is none, so that neither a loss nor its gradient can meet a NaN."""
  return jax.lax.stop_gradient(jnp.where(mask, labels, 0))
