"""Writing a file whole or not at all."""

from pathlib import Path

from mtl_jax.platform import address


def write(path: Path, content: str | bytes) -> None:
  """Writes the file under another name and renames it; its folder is made if need be. Objects of buckets are whole."""
  content = content.encode() if isinstance(content, str) else content
  if not address.is_local(path):
    with address.told(str(path), 'written'):
      path.write_bytes(content)
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix('.partial')
  partial.write_bytes(content)
  partial.replace(path)
