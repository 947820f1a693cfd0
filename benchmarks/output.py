"""Where a benchmark's numbers go."""

import json
from pathlib import Path
from typing import Any

from pretrain.files import write_atomically


def write_result(path: Path, content: dict[str, Any]) -> None:
    """Write the numbers as JSON, whole or not at all, and say where."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    print(f"written: {path}")
