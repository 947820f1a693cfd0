"""Where the report is made: versions, processor, commit. No host names, no paths of the machine, and not the time of day."""

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: Those whose version can move a number.
PACKAGES = (
    *("torch", "torchvision", "lightning", "timm", "open-clip-torch", "transformers", "tokenizers"),
    *("mmdet", "mmengine", "mmcv-lite", "numpy", "scipy", "scikit-learn", "pillow", "optuna"),
)
_ROOT = Path(__file__).parents[2]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor(cpuinfo: str) -> str:
    """The model's name out of the text of /proc/cpuinfo; the architecture where it has none."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace") if path.is_file() else ""


def _memory_gib() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError):  # names that this system has not
        return "unknown"


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=_ROOT, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> str:
    """Of the checkout this code lies in, and whether files differ from it."""
    found = _git("rev-parse", "--short=12", "HEAD")
    if not found:
        return "unknown: this is no git checkout"
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return f"{found}{', with files changed since' if changes else ''}"


def newest(files: Iterable[Path]) -> str:
    """Day of the file that was changed last: the same files give the same page."""
    times = [path.stat().st_mtime for path in files if path.is_file()]
    return datetime.fromtimestamp(max(times), UTC).strftime("%Y-%m-%d") if times else "there are none"


def facts(folders: Sequence[Path]) -> dict[str, str]:
    """Lines of the environment, by what they are.

    Args:
        folders: of results.
    """
    return {
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "Packages": ", ".join(f"{package} {_version(package)}" for package in PACKAGES),
        "Processor": f"{processor(_cpuinfo())}, {os.cpu_count()} cores seen",
        "Memory": _memory_gib(),
        "System": f"{platform.system()} {platform.machine()}",
        "Commit": commit(),
        "Newest results file": f"{newest(path for folder in folders for path in folder.rglob('*'))} (UTC, by the file's time)",
    }
