"""Array types of annotations: jaxtyping's, or stand-ins where it is not installed."""

from typing import TYPE_CHECKING

from jax import Array

if TYPE_CHECKING:
  from jaxtyping import Bool, Float, Int, Int32, Key
else:
  try:
    from jaxtyping import Bool, Float, Int, Int32, Key
  except ImportError:

    class _Shaped:
      """An array type that forgets its shape."""

      def __class_getitem__(cls, _):
        return Array

    Bool = Float = Int = Int32 = Key = _Shaped

__all__ = ['Array', 'Bool', 'Float', 'Int', 'Int32', 'Key']
