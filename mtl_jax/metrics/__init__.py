"""Metrics: each computed and declared once, from predictions, labels and the draws that examples are weighted by."""

from mtl_jax.metrics.binary import binary
from mtl_jax.metrics.categorical import categorical
from mtl_jax.metrics.dense import dense
from mtl_jax.metrics.landmarks import landmarks
from mtl_jax.metrics.metric import Metric
from mtl_jax.metrics.ordinal import ordinal
from mtl_jax.metrics.regression import regression

__all__ = ['Metric', 'binary', 'categorical', 'dense', 'landmarks', 'ordinal', 'regression']
