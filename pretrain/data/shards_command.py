"""`python -m pretrain shards OUT --from KIND ...`: write any source as WebDataset shards."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from pretrain.data.command_source import add_source_flags, build_source
from pretrain.data.terminal import progress_bar, run_command, show_table
from pretrain.data.write_shards import ShardWriter


def add_writing_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("shards")
    group.add_argument("--per-shard", type=int, default=1000, help="most samples of a shard (default: 1000)")
    group.add_argument("--max-bytes", type=int, default=None, help="most bytes of a shard")
    group.add_argument("--prefix", default="train", help="shards are PREFIX-000000.tar and so on (default: train)")
    group.add_argument(
        "--max-fault-share",
        type=float,
        default=0.05,
        help="most of the last 10,000 samples that may be unusable (default: 0.05)",
    )


def written_rows(writer: ShardWriter, *, seconds: float) -> dict[str, str]:
    """The summary of a run of `writer`."""
    shards = writer.state.shards
    files = sum(bool(shard.name) for shard in shards)
    samples = sum(shard.samples for shard in shards)
    now = sum(shard.end - shard.first for shard in shards[writer.num_kept :])
    unusable = ", ".join(f"{count:,} {kind}" for kind, count in sorted(writer.log.counts.items()))
    return {
        "shards": f"{files:,} ({writer.num_kept:,} finished before)",
        "samples": f"{samples:,} of {len(writer.source):,}",
        "unusable": unusable or "none",
        "bytes": f"{sum(shard.bytes for shard in shards):,}",
        "seconds": f"{seconds:.1f} ({now / max(seconds, 1e-9):,.0f} samples/s)",
        "folder": str(writer.out),
    }


def run(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    source, made_from = build_source(options)
    writer = ShardWriter(
        source,
        options.out,
        made_from=made_from,
        per_shard=options.per_shard,
        max_bytes=options.max_bytes,
        prefix=options.prefix,
        max_fault_share=options.max_fault_share,
    )
    with progress_bar() as progress:
        writer.run(progress)
    show_table("shards", written_rows(writer, seconds=time.perf_counter() - start))
    print(writer.log.summary())


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain shards",
        description="Write a source as WebDataset shards: encoded pictures as they are, captions, and an index each. "
        "An interrupted run goes on where it was.",
        allow_abbrev=False,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    add_source_flags(parser)
    add_writing_flags(parser)
    options = parser.parse_args(args)
    return run_command(lambda: run(options))
