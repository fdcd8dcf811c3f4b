"""The Python of docs/own_parts.md: a part of each kind in turn, and the Flax module that is wrapped as a backbone."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / 'docs' / 'own_parts.md').read_text()
CODE = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
WRAPPED = CODE.pop(1)
