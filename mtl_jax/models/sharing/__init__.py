"""Ways of sharing a backbone between tasks: images to what each task's head reads."""

from collections.abc import Callable

import flax.linen as nn

from mtl_jax.models.sharing.hard import Hard

# A new way is a file here and a line: a module made with `backbone`, `tasks` (their names) and `spatial` (some head
# reads maps), that maps `(images, train=)` to one `Representation` for all tasks, or to one of each by name.
SHARING: dict[str, Callable[..., nn.Module]] = {'hard': Hard}
