"""Open optuna-dashboard on a sweep: `make dashboard`.

python -m benchmarks.sweep.dashboard [NAME] [--storage URL] [--port 8080]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.sweep.study import open_storage
from pretrain.types import UserError

FOLDER = Path("runs/sweeps")


def find_storage(name: str | None, *, folder: Path = FOLDER) -> str:
    """URL of a sweep's SQLite file; of the last one that was worked on where no name is given.

    Args:
        name: of the sweep, its YAML file, or a study.db.
        folder: of the sweeps.

    Raises:
        UserError: there is none, with the names that there are.
    """
    if name and Path(name).suffix in (".yaml", ".yml"):
        name = Path(name).stem
    found = sorted(folder.glob("*/study.db"), key=lambda path: path.stat().st_mtime)
    if name is None and found:
        return f"sqlite:///{found[-1].resolve()}"
    path = Path(name) if name and Path(name).is_file() else folder / (name or "") / "study.db"
    if name is None or not path.is_file():
        there = (
            f"there are {', '.join(sorted(one.parent.name for one in found))}" if found else "run one first: make sweep"
        )
        raise UserError(f"no study {name or ''} in {folder}: {there}".replace("study  in", "study in"))
    return f"sqlite:///{path.resolve()}"


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep.dashboard", description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="?", help="of a sweep, its .yaml, or a study.db; the last one where not given")
    parser.add_argument("--storage", help="URL of a database, in place of a name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args(args)
    try:
        storage = open_storage(options.storage or find_storage(options.name))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from optuna_dashboard import run_server

    print(f"http://{options.host}:{options.port}/ (Ctrl-C ends it)")
    try:
        run_server(storage, host=options.host, port=options.port)
    except OSError as error:
        print(f"error: --port {options.port}: {error.strerror or error}; give another one", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
