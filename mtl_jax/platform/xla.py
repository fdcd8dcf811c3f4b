"""XLA's settings on CPUs, without which its sums can be wrong and its convolutions are slow.

From jaxlib 0.10.2 on XLA:CPU hands products, reductions and convolutions to YNNPACK. Reductions that it fuses with a
product give wrong numbers or end the process (public issues jax#39103, jax#39257, jax#40412): all of 0.10.2, 0.11.0,
0.11.2 and 0.12.0.1 compute `sum((E @ broadcast(c)) * E)`, which the gradients of quadratic forms contain, wrongly.
Its convolutions are up to 15 times slower in their weight gradients. Single matrix products are right and fast there,
and all that `FLAG` leaves to it. `import mtl_jax` sets it, which must happen before JAX's first computation.
"""

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import MutableMapping

NAME = '--xla_cpu_experimental_ynn_fusion_type'
FLAG = f'{NAME}=individual_dot'
CONCERNED = ((0, 10, 2), (0, 13))  # Versions of jaxlib from, and before: XLA dies of a flag that it does not know.
BARRIERS_STAY = 'cse_barrier_expander'  # The pass that removes `lax.optimization_barrier` before loops are fused.


def set_flags(environment: MutableMapping[str, str] = os.environ) -> None:
  """Adds `FLAG` to `XLA_FLAGS`, unless the user has chosen, or this jaxlib or a TPU's compiler may not know it.

  Raises:
    ImportError: where JAX runs on a CPU already, with reductions that can be wrong, so that no flag helps any more.
  """
  flags = environment.get('XLA_FLAGS', '')
  if not _concerned() or _on_tpu(environment):
    return
  if NAME not in flags:
    environment['XLA_FLAGS'] = f'{flags} {FLAG}'.strip()
  if _started() and reductions_in_ynnpack():
    raise ImportError(
      f'JAX was used before mtl_jax was imported, and jaxlib {_version()} can compute wrong sums on a CPU without '
      f'XLA_FLAGS={FLAG}: restart Python and import mtl_jax first, or set that variable before Python starts'
    )


def reductions_in_ynnpack() -> bool:
  """True where programs compiled now, for a CPU, have their sums computed by YNNPACK. Starts JAX's backend."""
  import jax

  if jax.default_backend() != 'cpu':
    return False
  program = jax.jit(lambda x: x.sum(axis=0)).lower(jax.ShapeDtypeStruct((2**15 + 1, 8), 'float32')).compile()
  return 'ynn_fusion' in (program.as_text() or '')


def step_options() -> dict[str, str] | None:
  """`compiler_options` of programs that train: on a CPU barriers keep producers out of transposed reads of maps.

  Weight gradients of convolutions read activations transposed. XLA:CPU would compute the activation again inside that
  read, element by element over distant addresses; `models.convolution` puts barriers there, which this lets stand.
  """
  import jax

  return {'xla_disable_hlo_passes': BARRIERS_STAY} if jax.default_backend() == 'cpu' else None


def describe() -> str:
  """The setting in force and what it means, in a line. Starts JAX's backend."""
  import jax

  if jax.default_backend() != 'cpu':
    return 'concerns CPUs only'
  if not reductions_in_ynnpack():
    return f'sums by XLA itself, right and fast ({os.environ.get("XLA_FLAGS", "") or "no flags"})'
  if _concerned():
    return f'WRONG SUMS are possible with jaxlib {_version()}: take {NAME} out of XLA_FLAGS, mtl_jax sets it'
  return f'sums by YNNPACK, which was wrong up to jaxlib 0.12.0.1 and is not known in {_version()}: run the tests'


def _concerned() -> bool:
  numbers = tuple(int(part) for part in _version().split('.')[:3] if part.isdigit())
  return CONCERNED[0] <= numbers < CONCERNED[1]


def _version() -> str:
  return importlib.metadata.version('jaxlib')


def _on_tpu(environment: MutableMapping[str, str]) -> bool:
  """True where a TPU's compiler, of a version of its own, will read `XLA_FLAGS` too."""
  platforms = environment.get('JAX_PLATFORMS', '')
  return 'tpu' in platforms or (not platforms and importlib.util.find_spec('libtpu') is not None)


def _started() -> bool:
  bridge = sys.modules.get('jax._src.xla_bridge')
  return bridge is not None and bridge.backends_are_initialized()
