"""Where a benchmark's numbers go, and its pictures."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.files import write_atomically


def write_result(path: Path, content: dict[str, Any]) -> None:
    """Write the numbers as JSON, whole or not at all, and say where."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    print(f"written: {path}")


def to_svg(canvas: Any, options: Mapping[str, Any]) -> bytes:
    """A matplotlib figure as an SVG file without a date.

    Args:
        canvas: the figure.
        options: of matplotlib's rc; with "svg.hashsalt" the file is the same for the same numbers.
    """
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(dict(options)):
        canvas.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
