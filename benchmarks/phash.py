"""How well perceptual hashes find copies of photographs, and how often they take one picture for another.

    python -m benchmarks.phash --photos '../shared/data/flickr1k/*.tar' \
        --others ../shared/data/coco_mini/train2017 ../shared/data/coco_mini/val2017 \
        --small parquet:TRAIN.parquet parquet:TEST.parquet --small-column img

The table in `pretrain/data/phash.py`, from which the default distance was chosen, is of this.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.output import write_result
from pretrain.data.dedupe import eval_source
from pretrain.data.phash import HashIndex, phash
from pretrain.data.samples import Source

DISTANCES = range(0, 13, 2)
#: Pictures this alike are the same one, as CIFAR-10 has some in both of its parts.
_SAME = 0.9


def compress(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=50)
    return Image.open(file).convert("RGB")


def halve(image: Image.Image) -> Image.Image:
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BICUBIC)


def crop(image: Image.Image, share: float) -> Image.Image:
    """Cut `share` of the width off left and right, of the height off top and bottom."""
    x, y = share * image.width, share * image.height
    return image.crop((round(x), round(y), round(image.width - x), round(image.height - y)))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG at quality 50": compress,
    "half the size": halve,
    "2.5% off each side": lambda image: crop(image, 0.025),
    "all three": lambda image: compress(halve(crop(image, 0.025))),
    "5% off each side": lambda image: crop(image, 0.05),
}


def hashes_of(source: Source, change: Callable[[Image.Image], Image.Image] = lambda image: image) -> np.ndarray:
    numbers = track(range(len(source)), "hashing", transient=True, console=Console(stderr=True))
    return np.array([phash(change(source.load(index).image)) for index in numbers], dtype=np.uint64)


def at_most(distances: np.ndarray) -> list[int]:
    return [int((distances <= distance).sum()) for distance in DISTANCES]


def different(one: Source, two: Source) -> tuple[list[int], int]:
    """Pairs of pictures of two sources that match, without those that are the same picture, and how many pairs there are."""
    hashes_1, hashes_2 = hashes_of(one), hashes_of(two)
    found: list[int] = []
    for number, value in enumerate(hashes_1):
        distances = np.bitwise_count(hashes_2 ^ value)
        for other in np.flatnonzero(distances <= max(DISTANCES)):
            pixels = [np.asarray(s.load(int(i)).image, dtype=np.float32) for s, i in ((one, number), (two, other))]
            same = pixels[0].shape == pixels[1].shape and np.corrcoef(*(p.ravel() for p in pixels))[0, 1] > _SAME
            if not same:
                found.append(int(distances[other]))
    return at_most(np.array(found)), len(hashes_1) * len(hashes_2)


def search_rate(*, count: int = 50_000, queries: int = 2_000) -> float:
    """Hashes compared in a second of one core's time."""
    values = np.random.default_rng(0).integers(0, 2**64, count + queries, dtype=np.uint64)
    index = HashIndex(values[:count])
    start = time.process_time()
    for value in values[count:]:
        index.nearest(value)
    return count * queries / (time.process_time() - start)


def measure(photos: Source, others: Sequence[Source], small: Sequence[Source]) -> dict[str, Any]:
    whole = hashes_of(photos)
    recall = {}
    for name, change in COPIES.items():
        distances = np.bitwise_count(whole ^ hashes_of(photos, change))
        recall[name] = [count / len(whole) for count in at_most(distances)]
    upper = np.triu_indices(len(whole), 1)
    matches, pairs = np.array(at_most(np.bitwise_count(whole[:, None] ^ whole)[upper])), len(upper[0])
    for other in others:
        more, num_pairs = different(other, photos)
        matches, pairs = matches + more, pairs + num_pairs
    false = {"photographs": {"pairs": pairs, "matches": matches.tolist()}}
    if len(small) == 2:
        found, pairs = different(*small)
        false["small pictures"] = {"pairs": pairs, "matches": found}
        found, pairs = different(small[1], photos)
        false["photographs x small pictures"] = {"pairs": pairs, "matches": found}
    return {
        "distances": list(DISTANCES),
        "photos": len(whole),
        "recall": recall,
        "false": false,
        "pairs_per_cpu_s": search_rate(),
    }


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"perceptual hashes of {result['photos']:,} photographs, found at a distance of at most")
    table.add_column("")
    for distance in result["distances"]:
        table.add_column(str(distance), justify="right")
    for name, shares in result["recall"].items():
        table.add_row(name, *(f"{share:.3f}" for share in shares))
    for name, row in result["false"].items():
        table.add_row(f"different {name}, of {row['pairs']:,} pairs", *(f"{count:,}" for count in row["matches"]))
    Console(width=130 if not sys.stdout.isatty() else None).print(table)
    print(f"search: {result['pairs_per_cpu_s']:.2g} pairs per second of one core")


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.phash", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--photos", required=True, help="photographs that are copied, as --against of dedupe")
    parser.add_argument("--others", nargs="*", default=[], help="more photographs, different from these")
    parser.add_argument("--small", nargs=2, default=[], help="two sets of small pictures, different but for a few")
    parser.add_argument("--small-column", default="image", help="their column of pictures")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/phash.json"))
    options = parser.parse_args(args)
    result = measure(
        eval_source(options.photos),
        [eval_source(text) for text in options.others],
        [eval_source(text, image_column=options.small_column) for text in options.small],
    )
    show(result)
    write_result(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
