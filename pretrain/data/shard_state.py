"""What a folder of written shards is made of and how far it is: `shards.json`, and `removed.jsonl` for what was left out."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pretrain.files import write_atomically
from pretrain.types import UserError

STATE_FILE, REMOVED_FILE = "shards.json", "removed.jsonl"
_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes:
        name: its file; "" where the rest of a source held no sample that could be used.
        first: the first sample of the source that it was made of.
        end: the last one + 1; some in between may be unusable or dropped.
        samples: how many it holds.
        dropped: how many were left out.
        bytes: size of the file.
    """

    name: str
    first: int
    end: int
    samples: int
    dropped: int
    bytes: int


@dataclass
class State:
    """What `shards.json` holds.

    Attributes:
        made_from: what the shards are made of and how; a run that differs in it is refused.
        shards: the finished ones, in order.
        faults: state of the fault log behind the last of them.
        complete: whether the source's end was reached.
    """

    made_from: dict[str, Any]
    shards: list[Shard] = field(default_factory=list)
    faults: dict[str, Any] | None = None
    complete: bool = False

    def save(self, out: Path) -> None:
        content = {"version": _VERSION, **asdict(self)}
        write_atomically(out / STATE_FILE, (json.dumps(content) + "\n").encode())


def load_state(out: Path, made_from: dict[str, Any]) -> State:
    """The state of an interrupted run in `out`, or a new one.

    Raises:
        UserError: the folder holds other things, a damaged state, or shards that are made of something else.
    """
    made_from = json.loads(json.dumps(made_from))  # as it looks when it is read back
    path = out / STATE_FILE
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(not file.name.startswith(".") for file in out.iterdir())):
            raise UserError(f"{str(out)!r} holds other things and no {STATE_FILE}: give an empty or a new folder")
        return State(made_from)
    try:
        content = json.loads(path.read_bytes())
        if content.pop("version") != _VERSION:
            raise ValueError("it is of another version")
        state = State(**{**content, "shards": [Shard(**shard) for shard in content["shards"]]})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}): give an empty or a new folder") from error
    for name in sorted(made_from.keys() | state.made_from.keys()):
        was, now = state.made_from.get(name), made_from.get(name)
        if was != now:
            raise UserError(
                f"{str(out)!r} was begun with {name}={was}, this command has {name}={now}: give the same, or a new folder"
            )
    return state


def note_removed(out: Path, rows: Iterable[dict[str, object]]) -> None:
    """Add rows to `removed.jsonl`, on disk when this returns."""
    with (out / REMOVED_FILE).open("a", encoding="utf-8", errors="surrogatepass") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def trim_removed(out: Path, *, end: int) -> None:
    """Take rows of samples from `end` on out of `removed.jsonl`: they belong to a shard that was not finished."""
    path = out / REMOVED_FILE
    if not path.exists():
        return

    def is_kept(line: bytes) -> bool:
        try:
            return json.loads(line)["index"] < end
        except ValueError:  # the line that the run was killed in
            return False

    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if is_kept(line)]
    if kept != lines:
        write_atomically(path, b"".join(kept))


def read_removed(out: Path) -> list[dict[str, Any]]:
    """The rows of `removed.jsonl`; none where nothing was left out."""
    path = out / REMOVED_FILE
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
