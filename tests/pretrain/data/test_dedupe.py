import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.progress import Progress

from pretrain.data import write_shards
from pretrain.data.dedupe import EvalPictures, eval_source, hash_eval_set
from pretrain.data.dedupe_command import main
from pretrain.data.parquet import ParquetSource
from pretrain.data.phash import DEFAULT_DISTANCE, HashIndex, phash
from pretrain.data.shards import ShardSource
from pretrain.data.sources import FolderSource
from pretrain.types import UserError


def _picture(seed, size=96):
    """Smooth and structured, as photographs are, and another one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def _copy(image, *, crop=0.0):
    """Half the size, compressed, with a share of width and height cut off at each side."""
    x, y = crop * image.width, crop * image.height
    image = image.crop((round(x), round(y), round(image.width - x), round(image.height - y)))
    file = io.BytesIO()
    image.resize((image.width // 2, image.height // 2)).save(file, "JPEG", quality=50)
    return Image.open(file).convert("RGB")


@pytest.fixture
def pictures(tmp_path):
    """Twelve pictures to train on; number 2, 5 and 6 are copies of the evaluation set's."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        image = _copy(_picture(100 + number)) if number in (2, 5, 6) else _picture(number)
        image.save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def evals(tmp_path):
    """The evaluation set: e2.png, e5.png, e6.png are in the training pictures, e0.png and e1.png are not."""
    folder = tmp_path / "evals"
    folder.mkdir()
    for number in (0, 1, 2, 5, 6):
        _picture(100 + number).save(folder / f"e{number}.png")
    return folder


def _hash(value):
    return np.uint64(value)


# hashes


def test_copies_are_near_and_others_are_far():
    originals = [phash(_picture(seed)) for seed in range(30)]
    for seed, value in enumerate(originals):
        copy = phash(_copy(_picture(seed)))
        distances = [int(np.bitwise_count(copy ^ other)) for other in originals]
        assert distances[seed] <= DEFAULT_DISTANCE
        assert min(distances[:seed] + distances[seed + 1 :]) > DEFAULT_DISTANCE
        assert value.dtype == np.uint64


def test_half_of_the_bits_are_set():
    assert all(int(np.bitwise_count(phash(_picture(seed)))) == 32 for seed in range(20))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (32, 32), (640, 480)])
def test_sizes(size):
    assert phash(_picture(0).resize(size)).shape == ()


def test_brightness_does_not_matter():
    dark = _picture(3).point(lambda value: value // 2)
    assert int(np.bitwise_count(phash(_picture(3)) ^ phash(dark))) <= 2


def test_pictures_without_structure_have_one_hash():
    hashes = {int(phash(Image.new("RGB", (50 + level, 40), (level,) * 3))) for level in (1, 7, 100, 254)}
    assert len(hashes) == 1


def test_nearest_by_hand():
    index = HashIndex(np.array([0b1111, 0b1000_0000, 0b1, 0b1], dtype=np.uint64))
    assert index.nearest(_hash(0b1111)) == (0, 0)
    assert index.nearest(_hash(0b0111)) == (1, 0)
    assert index.nearest(_hash(0b0)) == (1, 1)  # the first of several
    assert index.nearest(_hash(0b11)) == (1, 2)
    assert index.nearest(_hash(2**64 - 1)) == (60, 0)


def test_nearest_over_several_blocks(monkeypatch):
    monkeypatch.setattr("pretrain.data.phash._BLOCK", 7)
    values = np.random.default_rng(0).integers(0, 2**64, 60, dtype=np.uint64)
    index = HashIndex(values)
    for query in np.random.default_rng(1).integers(0, 2**64, 20, dtype=np.uint64):
        distances = [bin(int(value) ^ int(query)).count("1") for value in values]
        assert index.nearest(query) == (min(distances), distances.index(min(distances)))
    assert index.nearest(values[41]) == (0, 41)
    with pytest.raises(ValueError, match="no hash"):
        HashIndex(values[:0])


# evaluation sets


def test_kinds_of_evaluation_set(evals, tmp_path):
    rows = [{"img": (evals / f"e{number}.png").read_bytes()} for number in (0, 1)]
    (tmp_path / "p").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p/a.parquet")
    (evals / "t.csv").write_text("image,caption\ne0.png,x\n")
    for text, kind, count in [
        (str(evals), FolderSource, 5),
        (f"folder:{evals}", FolderSource, 5),
        (str(tmp_path / "p"), ParquetSource, 2),
        (f"parquet:{tmp_path}/p/*.parquet", ParquetSource, 2),
    ]:
        source = eval_source(text, image_column="img")
        assert (type(source), len(source)) == (kind, count)
    assert len(eval_source(str(evals / "t.csv"))) == 1
    with pytest.raises(UserError, match=r"--against .*what it is cannot be told; give folder:PATH, shards:PATH"):
        eval_source(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"--against folder:.*/none: path: .* is not a folder"):
        eval_source(f"folder:{tmp_path}/none")


def test_which_set_and_picture_matches(evals, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    _picture(0).save(other / "o.png")
    with Progress(disable=True) as progress:
        sets = [hash_eval_set(name, FolderSource(path), progress) for name, path in (("a", evals), ("b", other))]
    pictures = EvalPictures(sets, distance=4)
    (other / "o.png").rename(evals / "z.png")
    found = FolderSource(evals)
    rows = [pictures.match(found.load(index)) for index in range(6)]
    assert rows[3] == {"eval": "a", "match": "e5.png", "distance": 0}
    assert rows[5] == {"eval": "b", "match": "o.png", "distance": 0}
    _picture(77).save(evals / "zz.png")
    assert pictures.match(FolderSource(evals).load(6)) is None
    for distance in (-1, 32):
        with pytest.raises(UserError, match=f"--distance {distance} must be from 0 to 31"):
            EvalPictures(sets, distance=distance)


def test_evaluation_set_that_cannot_be_used(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"broken")
    with Progress(disable=True) as progress, pytest.raises(UserError, match=r"no picture can be used \(skipped 1 of 1"):
        hash_eval_set("x", FolderSource(tmp_path), progress)


# python -m pretrain dedupe


def _run(pictures, evals, *args):
    return main(["--against", str(evals), "--from", "folder", "--path", str(pictures), *map(str, args)])


def _cells(text, name):
    return next(line.split("│")[2].strip() for line in text.splitlines() if f"│ {name}" in line)


def _rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_shards_without_the_matches(pictures, evals, tmp_path, capsys):
    (evals / "bad.png").write_bytes(b"broken")
    assert _run(pictures, evals, "--out", tmp_path / "out", "--per-shard", 4) == 0
    source = ShardSource(tmp_path / "out")
    assert source.shard_counts == [4, 4, 1]
    assert [source.read(index).record["key"] for index in range(9)] == [
        f"{number:02d}.png" for number in range(12) if number not in (2, 5, 6)
    ]
    rows = _rows(tmp_path / "out/removed.jsonl")
    assert [(row["index"], row["key"], row["eval"], row["match"]) for row in rows] == [
        (number, f"{number:02d}.png", str(evals), f"e{number}.png") for number in (2, 5, 6)
    ]
    assert all(0 <= row["distance"] <= DEFAULT_DISTANCE for row in rows)
    text = capsys.readouterr().out
    assert _cells(text, f"in {evals}") == "3 samples match 3 of 5 pictures; 1 more could not be used"
    assert (_cells(text, "removed"), _cells(text, "samples")) == ("3 of 12", "9 of 12")


def test_report_only(pictures, evals, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert _run(pictures, evals, "--report-only") == 0
    assert _cells(capsys.readouterr().out, "removed") == "3 of 12"
    assert sorted(tmp_path.rglob("*")) == before
    assert _run(pictures, evals, "--report-only", "--out", tmp_path / "out") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["removed.jsonl"]
    assert [row["index"] for row in _rows(tmp_path / "out/removed.jsonl")] == [2, 5, 6]


def test_distance(pictures, evals, tmp_path, capsys):
    assert _run(pictures, evals, "--report-only", "--distance", 0) == 0
    counts = [int(_cells(capsys.readouterr().out, "removed").split()[0])]
    for distance in (8, 31):
        _run(pictures, evals, "--report-only", "--distance", distance)
        counts.append(int(_cells(capsys.readouterr().out, "removed").split()[0]))
    assert counts[0] < counts[1] == 3 < counts[2]


class _Stop(Exception):
    pass


@pytest.mark.parametrize("stop", [3, 4, 9, 11])
def test_interrupted_run_goes_on_to_the_same_rows(pictures, evals, tmp_path, monkeypatch, capsys, stop):
    args = ("--per-shard", 2)
    assert _run(pictures, evals, "--out", tmp_path / "whole", *args) == 0
    whole = write_shards._add

    def add(tar, members):
        if members[0][0].startswith(f"{stop:09d}"):
            raise _Stop
        whole(tar, members)

    with monkeypatch.context() as patch:
        patch.setattr(write_shards, "_add", add)
        with pytest.raises(_Stop):
            _run(pictures, evals, "--out", tmp_path / "out", *args)
    assert _run(pictures, evals, "--out", tmp_path / "out", *args) == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir() if not path.name.endswith(".index"))
    assert "removed.jsonl" in names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_distance_or_evaluation_set_is_refused(pictures, evals, tmp_path, capsys):
    assert _run(pictures, evals, "--out", tmp_path / "out") == 0
    assert _run(pictures, evals, "--out", tmp_path / "out", "--distance", 6) == 2
    assert "was begun with distance=8, this command has distance=6" in capsys.readouterr().err
    _picture(55).save(evals / "new.png")
    assert _run(pictures, evals, "--out", tmp_path / "out") == 2
    assert "was begun with hashes=" in capsys.readouterr().err


def test_errors(pictures, evals, tmp_path, capsys):
    for args, message in [
        ([], "--out is needed"),
        (["--out", tmp_path / "out", "--distance", 40], "--distance 40 must be from 0 to 31"),
        (["--out", pictures], "holds other things"),
    ]:
        assert _run(pictures, evals, *args) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert message in error[-1]
    assert _run(pictures, evals, "--out", tmp_path / "out") == 0
    assert _run(pictures, evals, "--out", tmp_path / "out", "--report-only") == 2


@pytest.mark.shared_data
def test_copies_of_flickr1k_are_found(shared_data, tmp_path, capsys):
    pattern = str(shared_data / "flickr1k/val-*.tar")
    photos = ShardSource(pattern)
    copies = tmp_path / "copies"
    copies.mkdir()
    for index in range(0, len(photos), 5):
        _copy(photos.load(index).image, crop=0.02).save(copies / f"{index:03d}.png")
    args = ["--against", str(copies), "--from", "shards", "--path", pattern, "--out", str(tmp_path / "out")]
    assert main(args) == 0
    rows = _rows(tmp_path / "out/removed.jsonl")
    assert all(row["match"] == f"{row['index']:03d}.png" for row in rows)  # no photograph is taken for another
    assert len(rows) >= 24  # of 25; 97% of copies like these are within the default distance
