"""`python -m pretrain index PATH ...`: make or check the indices of WebDataset shards before a run needs them."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from pretrain.data.faults import FaultLog
from pretrain.data.find_files import find_shards
from pretrain.data.shard_index import (
    THREADS,
    ShardSummary,
    default_cache,
    iter_indices,
    renew_index,
    verify_index,
)
from pretrain.data.terminal import run_command, show_table

T = TypeVar("T")


def _bar(items: Iterable[T], description: str, *, total: int) -> Iterable[T]:
    return track(items, description, total=total, transient=True, console=Console(stderr=True))


def verify(paths: Sequence[str], summaries: Sequence[ShardSummary]) -> list[str]:
    """Shards whose headers are not those that their index was made of, although size and time are the same.

    Their indices are made anew.
    """

    def one(path: str, summary: ShardSummary) -> bool:
        if summary.built or verify_index(path, summary):
            return True
        renew_index(path, summary)
        return False

    with ThreadPoolExecutor(THREADS) as pool:
        same = list(_bar(pool.map(one, paths, summaries), "verifying", total=len(paths)))
    return [path for path, unchanged in zip(paths, same, strict=True) if not unchanged]


def _show(summaries: Sequence[ShardSummary], *, seconds: float) -> None:
    samples = sum(summary.count for summary in summaries)
    index_bytes = sum(os.path.getsize(summary.index_path) for summary in summaries)
    folders = sorted({os.path.dirname(summary.index_path) for summary in summaries})
    faults = [fault for summary in summaries for fault in summary.faults]
    kinds = Counter(fault.kind for fault in faults)
    built = sum(summary.built for summary in summaries)
    rows = {
        "shards": f"{len(summaries):,} ({built:,} indexed now)",
        "samples": f"{samples:,}",
        "bytes": f"{sum(summary.stamp.size for summary in summaries):,}",
        "faults": ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common()) or "none",
        "indices": ", ".join(folders[:3]) + (f" and {len(folders) - 3} more folders" if len(folders) > 3 else ""),
        "index bytes per million samples": f"{1e6 * index_bytes / max(1, samples):,.0f}",
        "seconds": f"{seconds:.1f}",
    }
    show_table("shards", rows)
    if faults:
        log = FaultLog()
        log.record(0, faults)
        print(log.summary())


def run(options: argparse.Namespace) -> int:
    """Exit status 1 where shards have changed behind their index."""
    start = time.perf_counter()
    paths = find_shards(options.paths)
    indices = iter_indices(paths, cache=options.cache, beside=options.beside)
    summaries = list(_bar(indices, "indexing shards", total=len(paths)))
    changed = verify(paths, summaries) if options.verify else []
    if changed:  # with what is in them now
        summaries = list(iter_indices(paths, cache=options.cache))
    _show(summaries, seconds=time.perf_counter() - start)
    for path in changed:
        print(f"not as its index said, although size and time are; indexed anew: {path}", file=sys.stderr)
    if options.verify:
        print(f"verified: {len(paths) - len(changed):,} of {len(paths):,} shards are as their index says")
    return 1 if changed else 0


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain index",
        description="Make the indices of WebDataset shards, or check those that are there.",
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="folder, .tar file, glob, brace range or URL")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--beside", action="store_true", help="write x.tar.index beside each x.tar, to be copied with it"
    )
    where.add_argument("--cache", type=Path, default=None, help=f"folder of the indices (default: {default_cache()})")
    parser.add_argument("--verify", action="store_true", help="read all headers and compare their stored checksum")
    options = parser.parse_args(args)
    return run_command(lambda: run(options))
