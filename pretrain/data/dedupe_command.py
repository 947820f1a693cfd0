"""`python -m pretrain dedupe --against EVAL ... --from KIND ... --out OUT`: shards without an evaluation set's pictures."""

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from pretrain.data.command_source import add_source_flags, build_source
from pretrain.data.dedupe import EVAL_KINDS, EvalPictures, eval_source, hash_eval_set
from pretrain.data.examine import counted, examine
from pretrain.data.faults import FaultLog
from pretrain.data.phash import DEFAULT_DISTANCE
from pretrain.data.samples import Source
from pretrain.data.shard_state import REMOVED_FILE, STATE_FILE, read_removed
from pretrain.data.shards_command import add_writing_flags, written_rows
from pretrain.data.source_config import StorageConfig
from pretrain.data.terminal import progress_bar, run_command, show_table
from pretrain.data.write_shards import ShardWriter
from pretrain.files import write_atomically
from pretrain.types import UserError


def _check(options: argparse.Namespace) -> None:
    if options.out is None and not options.report_only:
        raise UserError("--out is needed: the folder of the shards; or give --report-only")
    if options.report_only and options.out is not None and (options.out / STATE_FILE).exists():
        raise UserError(f"--out {options.out} holds written shards: with --report-only give another folder")


def _eval_pictures(options: argparse.Namespace, progress: Progress) -> EvalPictures:
    storage = StorageConfig(options.index_cache)
    sets = []
    for text in options.against:
        source = eval_source(text, image_column=options.against_image_column, storage=storage)
        sets.append(hash_eval_set(text, source, progress, max_fault_share=options.max_fault_share))
    return EvalPictures(sets, distance=options.distance)


def report(
    source: Source, pictures: EvalPictures, progress: Progress, *, max_fault_share: float
) -> tuple[list[dict[str, Any]], FaultLog]:
    """The rows of `removed.jsonl`, without writing a shard."""
    task = progress.add_task("looking", total=len(source))
    log = FaultLog(max_fault_share, field="--max-fault-share")
    log.record(0, source.faults)
    rows = []
    for item in counted(examine(source, lambda stored: pictures.match(stored.decode())), log):
        if item.result is not None:
            rows.append({"index": item.index, "key": item.stored.key, **item.result})
        progress.advance(task)
    return rows, log


def _show_matches(pictures: EvalPictures, rows: Sequence[dict[str, Any]], *, num_samples: int) -> None:
    table = {}
    for found in pictures.sets:
        mine = [row for row in rows if row["eval"] == found.name]
        matched = len({row["match"] for row in mine})
        unusable = sum(found.log.counts.values())
        table[f"in {found.name}"] = f"{len(mine):,} samples match {matched:,} of {len(found.hashes):,} pictures" + (
            f"; {unusable:,} more could not be used" if unusable else ""
        )
    distances = Counter(row["distance"] for row in rows)
    counts = ", ".join(f"{count:,} at {distance}" for distance, count in sorted(distances.items()))
    table["removed"] = f"{len(rows):,} of {num_samples:,}"
    table[f"distances, at most {pictures.distance}"] = counts or "no match"
    show_table("matches", table)


def run(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    _check(options)
    source, made_from = build_source(options)
    with progress_bar() as progress:
        pictures = _eval_pictures(options, progress)
        if options.report_only:
            rows, log = report(source, pictures, progress, max_fault_share=options.max_fault_share)
            if options.out is not None:
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                write_atomically(options.out / REMOVED_FILE, "".join(lines).encode("utf-8", "surrogateescape"))
        else:
            removal = {"distance": options.distance, "against": options.against, "hashes": pictures.identity()}
            writer = ShardWriter(
                source,
                options.out,
                made_from={**made_from, **removal},
                per_shard=options.per_shard,
                max_bytes=options.max_bytes,
                prefix=options.prefix,
                max_fault_share=options.max_fault_share,
                drop=pictures.match,
            )
            writer.run(progress)
            rows, log = read_removed(options.out), writer.log
    _show_matches(pictures, rows, num_samples=len(source))
    if not options.report_only:
        show_table("shards", written_rows(writer, seconds=time.perf_counter() - start))
    print(log.summary())
    if options.out is not None:
        print(f"what was {'found' if options.report_only else 'removed'}: {options.out / REMOVED_FILE}")


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain dedupe",
        description="Find pictures of evaluation sets in a source, by perceptual hash, and write shards without them.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--against",
        nargs="+",
        required=True,
        metavar="EVAL",
        help=f"evaluation sets, each KIND:PATH or a PATH that tells ({', '.join(EVAL_KINDS)})",
    )
    parser.add_argument("--against-image-column", default="image", help="their column of pictures, where they have one")
    parser.add_argument("--out", type=Path, default=None, help=f"folder of the shards and of {REMOVED_FILE}")
    parser.add_argument(
        "--distance",
        type=int,
        default=DEFAULT_DISTANCE,
        help=f"largest Hamming distance of 64 bits that is a match (default: {DEFAULT_DISTANCE})",
    )
    parser.add_argument("--report-only", action="store_true", help="write no shard, only count (and list, with --out)")
    add_source_flags(parser)
    add_writing_flags(parser)
    options = parser.parse_args(args)
    return run_command(lambda: run(options))
