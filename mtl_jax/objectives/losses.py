"""Losses per label, shape [b, k], and the one place where they are averaged: over the labels that exist."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float


def binary_cross_entropy(logits: Float[Array, 'b k'], labels: Float[Array, 'b k']) -> Float[Array, 'b k']:
  """Cross-entropy of Bernoulli logits in nats; labels are 0 or 1."""
  return optax.sigmoid_binary_cross_entropy(logits, labels)


def squared_error(outputs: Float[Array, 'b k'], targets: Float[Array, 'b k']) -> Float[Array, 'b k']:
  """Squared difference, in the squared unit of the targets."""
  return jnp.square(outputs - targets)


def categorical_cross_entropy(logits: Float[Array, 'b c'], labels: Float[Array, 'b 1']) -> Float[Array, 'b 1']:
  """Cross-entropy of categorical logits in nats; labels are class numbers."""
  classes = labels[:, 0].astype(jnp.int32)
  return optax.softmax_cross_entropy_with_integer_labels(logits, classes)[:, None]


def masked_mean(values: Float[Array, 'b k'], mask: Bool[Array, 'b k']) -> Float[Array, '']:
  """Mean of the values under a True mask, 0 where there is none; what lies under a False is never read.

  On a mesh the sum and the count both run over the global batch, so the result does not depend on how
  the labels happen to be spread over devices.
  """
  total = jnp.where(mask, values, 0).sum()
  return total / jnp.maximum(mask.sum(), 1)


def guard(labels: Float[Array, 'b k'], mask: Bool[Array, 'b k']) -> Float[Array, 'b k']:
  """Labels with 0 where there is none, so that neither a loss nor its gradient can meet a NaN."""
  return jax.lax.stop_gradient(jnp.where(mask, labels, 0))
