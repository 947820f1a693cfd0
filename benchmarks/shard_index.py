"""What many shards cost: indexing them once, starting a run on them, and a loader worker's memory while it reads.

    python -m benchmarks.shard_index [--shards 1000] [--per-shard 200]

Shards of tiny pictures are written to a temporary folder. What is timed are headers, indices and places, not decoding.
"""

import argparse
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader

from benchmarks.output import write_result
from pretrain.data.order import Mixture, ShardOrder
from pretrain.data.shard_index import index_shards
from pretrain.data.shards import ShardSource
from pretrain.data.stream import Part, PositionBatches, Sample, SampleStream
from pretrain.data.tokenizers import BpeTokenizer
from pretrain.data.transforms import TrainTransform

_BATCH, _SIDE = 16, 32
#: As in `ImageTextData`.
_NUM_LANES, _WINDOW = 64, 1024


def write_shards(folder: Path, *, shards: int, per_shard: int) -> None:
    """Shards of a .jpg, a .json and a .txt each; sixteen different pictures."""
    pictures = []
    for seed in range(16):
        file = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "JPEG")
        pictures.append(file.getvalue())
    for shard in track(range(shards), "writing shards", transient=True):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w") as tar:
            for number in range(shard * per_shard, (shard + 1) * per_shard):
                text = f"picture {number}"
                record = json.dumps({"captions": [text]}).encode()
                for suffix, data in (("jpg", pictures[number % 16]), ("json", record), ("txt", text.encode())):
                    info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def measure_index(folder: Path, cache: Path) -> dict[str, float]:
    """Seconds and bytes to index all, per million samples, and seconds to start once that is done."""
    paths = sorted(map(str, folder.glob("*.tar")))
    start, cpu = time.perf_counter(), time.process_time()
    summaries = index_shards(paths, cache=cache)
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    millions = sum(summary.count for summary in summaries) / 1e6
    start, cpu = time.perf_counter(), time.process_time()
    source = ShardSource(folder, index_cache=cache)
    startup_s, startup_cpu_s = time.perf_counter() - start, time.process_time() - cpu
    assert len(source) == round(millions * 1e6)
    return {
        "index_s_per_million": seconds / millions,
        "index_cpu_s_per_million": cpu_s / millions,
        "index_bytes_per_million": sum(os.path.getsize(summary.index_path) for summary in summaries) / millions,
        "startup_s": startup_s,
        "startup_cpu_s": startup_cpu_s,
        "startup_ms_per_shard": 1e3 * startup_s / len(paths),
    }


def _rss_mib(samples: Sequence[Sample]) -> tuple[int, float]:
    """Instead of a batch: how many samples it has, and the memory of the worker that made it."""
    return len(samples), psutil.Process().memory_info().rss / 2**20


def measure_memory(folder: Path, cache: Path, *, samples: int, every: int) -> dict[str, Any]:
    """RSS of one worker after every so many samples of a run, and its rate."""
    source = ShardSource(folder, index_cache=cache)
    order = ShardOrder(source.shard_counts, seed=0, num_lanes=_NUM_LANES, window=_WINDOW)
    stream = SampleStream(
        [Part(source, TrainTransform(_SIDE), order)],
        Mixture([1.0], seed=0, num_lanes=_NUM_LANES),
        tokenizer=BpeTokenizer.train([f"picture {number}" for number in range(100)], 300),
        seed=0,
        replaces=True,
        length=2**62,
    )
    batches = PositionBatches(batch_size=_BATCH, num_batches=-(-samples // _BATCH))
    loader = DataLoader(stream, batch_sampler=batches, num_workers=1, collate_fn=_rss_mib)
    seen, rss, start = 0, [], time.perf_counter()
    for count, mib in track(loader, "reading", total=len(batches), transient=True):
        if (seen + count) // every > seen // every:
            rss.append({"samples": seen + count, "rss_mib": mib})
        seen += count
    growth = rss[-1]["rss_mib"] / rss[0]["rss_mib"] - 1
    rate = seen / (time.perf_counter() - start)
    return {"worker_rss": rss, "growth_after_first": growth, "flat": growth < 0.05, "samples_per_s": rate}


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['shards']:,} shards of {result['per_shard']:,} samples", show_header=False)
    for name, text in {
        "indexing": f"{result['index_s_per_million']:.0f} s per million samples ({result['index_cpu_s_per_million']:.0f} s CPU)",
        "indices": f"{result['index_bytes_per_million'] / 2**20:.0f} MiB per million samples",
        "start, once indexed": f"{result['startup_s']:.2f} s ({result['startup_ms_per_shard']:.2f} ms per shard)",
        "one worker": f"{result['samples_per_s']:,.0f} samples/s",
        "its memory grows by": f"{100 * result['growth_after_first']:.1f}% ({'flat' if result['flat'] else 'NOT FLAT'})",
        **{f"after {row['samples']:,} samples": f"{row['rss_mib']:.0f} MiB" for row in result["worker_rss"]},
    }.items():
        table.add_row(name, text)
    Console(width=130 if not sys.stdout.isatty() else None).print(table)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shard_index", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--per-shard", type=int, default=200)
    parser.add_argument("--samples", type=int, default=100_000, help="that the worker reads")
    parser.add_argument("--every", type=int, default=10_000, help="samples between two looks at its memory")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shard_index.json"))
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory(prefix="shard_index_") as name:
        folder, cache = Path(name) / "shards", Path(name) / "cache"
        folder.mkdir()
        write_shards(folder, shards=options.shards, per_shard=options.per_shard)
        result = {
            "shards": options.shards,
            "per_shard": options.per_shard,
            "cores": os.cpu_count(),
            **measure_index(folder, cache),
            **measure_memory(folder, cache, samples=options.samples, every=options.every),
        }
    show(result)
    write_result(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
