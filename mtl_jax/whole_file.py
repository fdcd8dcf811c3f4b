"""Writing a file whole or not at all."""

from pathlib import Path


def write(path: Path, content: str | bytes) -> None:
  """Writes the file under another name and renames it; its folder is made if need be."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix('.partial')
  partial.write_bytes(content.encode() if isinstance(content, str) else content)
  partial.replace(path)
