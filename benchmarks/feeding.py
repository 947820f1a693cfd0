"""Does the data keep up? Training fed from photograph shards against one repeated batch, and decoding against the JPEG library.

    python -m benchmarks.feeding [--path 'shards/*.tar'] [--sizes tiny small-112] [--rounds 5]

Feeding: the training step at a size, in turn on one batch that is at hand and on batches that one loader worker reads from the
shards (read, decode, crop, resize, flip, tokenise, collate); the share is repeated time over fed time, at the median round.
Decoding: pictures a second of one process through this suite (read from the shard, decode, checks, captions), against Pillow's
decoder alone on bytes in memory, in processor time, in turn.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.utils.data import DataLoader

from benchmarks.output import write_result
from benchmarks.throughput import DTYPES, SIZES, TrainStep
from pretrain.data.order import Mixture, ShardOrder
from pretrain.data.shards import ShardSource
from pretrain.data.stream import Collate, Part, PositionBatches, SampleStream
from pretrain.data.tar_members import IMAGE
from pretrain.data.tokenizers import BpeTokenizer
from pretrain.data.transforms import TrainTransform
from pretrain.types import ImageTextBatch, UserError

#: Photographs that the shared data hold; any shards will do.
DEFAULT_PATH = "../shared/data/flickr1k/train-*.tar"
_STEPS = 12


def fed_batches(source: ShardSource, *, img_size: int, batch_size: int, vocab_size: int) -> Iterator[ImageTextBatch]:
    """Batches as training gets them from one worker, without an end."""
    tokenizer = BpeTokenizer.train(source.iter_captions(2000), min(vocab_size, 4096))
    transform = TrainTransform(img_size)
    source.spare = transform.spare
    order = ShardOrder(source.shard_counts, seed=0, num_lanes=64, window=1024)
    stream = SampleStream(
        [Part(source, transform, order)],
        Mixture([1.0], seed=0, num_lanes=64),
        tokenizer=tokenizer,
        seed=0,
        replaces=True,
        length=2**62,
    )
    loader = DataLoader(
        stream,
        batch_sampler=PositionBatches(batch_size=batch_size, num_batches=2**30),
        num_workers=1,
        collate_fn=Collate(0, tokenizer.pad_id),
        prefetch_factor=4,
    )
    return iter(loader)


def measure_feeding(
    source: ShardSource, name: str, precision: str, *, rounds: int, advance: Callable[[], None]
) -> dict[str, Any]:
    """Images per second on one repeated batch and fed, in turn."""
    size = SIZES[name]
    spec = size.encoder_config.image_spec()
    step = TrainStep(size, precision)
    batches = fed_batches(source, img_size=spec.img_size, batch_size=size.batch_size, vocab_size=size.vocab_size)

    def next_batch() -> ImageTextBatch:
        batch = next(batches)
        batch.image_BCHW = spec.normalise(batch.image_BCHW)
        return batch

    def timed(get: Callable[[], ImageTextBatch]) -> float:
        start = time.perf_counter()
        for _ in range(_STEPS):
            step(get())
        return _STEPS * size.batch_size / (time.perf_counter() - start)

    first = next_batch()
    for _ in range(2):
        step(first)
    repeated, fed = [], []
    for _ in range(rounds):
        # the worker fills its queue while the repeated batch trains; the first steps empty it before time is taken
        repeated.append(timed(lambda: first))
        for _ in range(5):
            step(next_batch())
        fed.append(timed(next_batch))
        advance()
    return {
        "size": name,
        "precision": precision,
        "repeated_imgs_per_s": median(repeated),
        "fed_imgs_per_s": median(fed),
        "share": median(a / b for a, b in zip(fed, repeated, strict=True)),
        "rounds": rounds,
    }


def measure_decoding(source: ShardSource, *, rounds: int) -> dict[str, Any]:
    """Pictures per second of processor time, of this suite's reading and of Pillow alone."""
    torch.set_num_threads(1)
    source.spare = None  # the library alone decodes pictures as they are, too
    count = min(250, len(source))
    indices = range(len(source) - count, len(source))
    data = [source.read_member(index, IMAGE) for index in indices]

    def library(item: bytes) -> None:
        Image.open(io.BytesIO(item)).load()

    def rate(function: Callable[[Any], object], items: Sequence[Any]) -> float:
        start = time.process_time()
        for item in items:
            function(item)
        return len(items) / (time.process_time() - start)

    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(rate(library, data))
        ours.append(rate(source.load, indices))
    sizes = [Image.open(io.BytesIO(item)).size for item in data]
    return {
        "pictures": count,
        "mean_megapixels": sum(width * height for width, height in sizes) / count / 1e6,
        "ours_per_s": median(ours),
        "pillow_per_s": median(theirs),
        "share": median(a / b for a, b in zip(ours, theirs, strict=True)),
    }


def show(result: dict[str, Any]) -> None:
    console = Console(width=110 if not sys.stdout.isatty() else None)
    table = Table(title="Training fed by one worker, against one repeated batch")
    for column in ("size", "precision", "repeated images/s", "fed images/s", "share"):
        table.add_column(column, justify="right")
    for row in result["feeding"]:
        rates = (f"{row[key]:.1f}" for key in ("repeated_imgs_per_s", "fed_imgs_per_s"))
        table.add_row(row["size"], row["precision"], *rates, f"{100 * row['share']:.0f}%")
    console.print(table)
    decode = result["decoding"]
    console.print(
        f"reading and decoding: {decode['ours_per_s']:.0f} pictures/s of one processor, Pillow alone "
        f"{decode['pillow_per_s']:.0f}: share {decode['share']:.2f} ({decode['mean_megapixels']:.2f} megapixels)"
    )


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.feeding", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--path", default=DEFAULT_PATH, help="shards of photographs")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "small-112"])
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=["bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/feeding.json"))
    options = parser.parse_args(args)
    try:
        source = ShardSource(options.path)
    except UserError as error:
        print(f"error: --path: {error}", file=sys.stderr)
        return 2
    pairs = [(size, precision) for size in options.sizes for precision in options.precisions]
    with Progress(transient=True) as progress:
        task = progress.add_task("feeding", total=len(pairs) * options.rounds)
        rows = [
            measure_feeding(source, *pair, rounds=options.rounds, advance=lambda: progress.advance(task))
            for pair in pairs
        ]
    result = {
        "threads": torch.get_num_threads(),
        "feeding": rows,
        "decoding": measure_decoding(source, rounds=options.rounds),
    }
    show(result)
    write_result(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
