"""`python -m evals imagenet` from its arguments to its table."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from timm.data import ImageNetInfo

from evals import imagenet
from evals.__main__ import main as evals_main
from evals.data.config import FOLDER
from evals.imagenet import build_parser, main, read_config, summarise
from evals.results import EvalResult, read

TINY = "random:timm:aimv2_nano_patch4_32[depth=1,embed_dim=32,num_heads=2]"
ROW = EvalResult("", "", True, "test", "top1", 0.0, 8, 0, "", "", None, None, "", "", "", "", "", 0.0)
FAST = [
    "--probe.epochs=1",
    "--linear.epochs=1",
    "--num_draws=1",
    "--probe.head.num_heads=2",
    "--features.num_workers=0",
]


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """Run the command in a folder of its own; returns status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        status = main([*args])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def scenes(tmp_path):
    """scenes_shape with 120 scenes to train on and 40 to test."""
    content = yaml.safe_load((FOLDER / "scenes_shape.yaml").read_text()) | {"num_train": 120, "num_test": 40}
    path = tmp_path / "few_scenes.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_one_table_and_the_second_time_from_the_rows(start, scenes, tmp_path):
    args = ["--encoder", f"ours={TINY},{TINY}", "--encoder", TINY, "--dataset", f'["{scenes}"]', *FAST]
    status, out, err = start(*args)
    assert status == 0, err
    assert out.count("Frozen encoders") == 1
    assert re.search(r"scenes_shape.*ours.* ± ", out)
    assert "synthetic, chance 12.5" in out
    assert "2 seeds" in out
    rows = read(tmp_path / "runs" / "results.jsonl")
    assert {row.seed for row in rows} == {0, 1}, "the second of a group has the next seed"
    again, out2, err2 = start(*args)
    assert again == 0
    assert "is in runs/results.jsonl already" in err2
    assert "encode" not in err2
    assert len(read(tmp_path / "runs" / "results.jsonl")) == len(rows)
    assert out2.split("Frozen")[1].splitlines()[:-1] == out.split("Frozen")[1].splitlines()[:-1]


@pytest.fixture
def imagenet_folder(tmp_path):
    """The official layout: 1,000 classes with one picture each in train and in val."""
    rng = np.random.default_rng(0)
    wnids = ImageNetInfo().label_names()
    for split in ("train", "val"):
        for wnid in wnids:
            folder = tmp_path / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{wnid}_1.JPEG")
    return tmp_path / "imagenet"


def test_imagenet_from_end_to_end(start, imagenet_folder, tmp_path):
    (imagenet_folder / "val" / "n01440764" / "n01440764_1.JPEG").write_bytes(b"no picture")
    status, out, err = start("--encoder", TINY, "--data", str(imagenet_folder), *FAST)
    assert status == 0, err
    assert "1,000 of 1,281,167 pictures in train, 1,000 of 50,000 pictures in test" in " ".join(err.split())
    assert "imagenet1k-partial" in out
    assert "1 unreadable pictures left out" in err
    assert "5-shot is left out" in err
    rows = read(tmp_path / "runs" / "results.jsonl")
    assert {row.n for row in rows} == {999}
    assert len(next(row for row in rows if "per_class" in row.details).details["per_class"]) == 1000


def test_imagenet_of_the_right_size_is_asked_for(start, imagenet_folder):
    status, _, err = start("--encoder", TINY, "--data", str(imagenet_folder), "--allow_sizes=false", *FAST)
    assert status == 2
    assert "imagenet1k: its train split has 1,000 pictures" in err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "val"), "val"),
        (lambda root: shutil.rmtree(root / "train" / "n01440764"), "n01440764"),
        (lambda root: (root / "train" / "n01440764" / "n01440764_1.JPEG").unlink(), "n01440764"),
        (lambda root: (root / "train" / "n99999999").mkdir(), "n99999999"),
    ],
    ids=["missing split", "missing class", "empty class", "unknown class"],
)
def test_imagenet_folders_that_are_wrong(start, imagenet_folder, spoil, message):
    spoil(imagenet_folder)
    status, _, err = start("--encoder", TINY, "--data", str(imagenet_folder), *FAST)
    assert status == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: imagenet1k: ")
    assert message in line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--probe.lrz=1"], "lrz"),
        (["--tasks", '["guess"]'], "tasks: 'guess' is unknown"),
        (["--encoder", "tim:vit"], "no known prefix"),
        (["--encoder", TINY, "--dataset", '["scenes_shap"]'], "did you mean"),
        (["--encoder", TINY, "--data", "/x", "--dataset", '["cifar10","dtd"]'], "give one --dataset with it"),
        (["--probe.mode=sometimes"], "sometimes"),
    ],
)
def test_bad_arguments_are_one_line(start, args, message):
    status, _, err = start(*args)
    assert status == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line


def test_augmented_probes_leave_the_other_tasks_out():
    parser = build_parser()
    options = parser.instantiate_classes(parser.parse_args(["--probe.mode=augmented"]))
    assert read_config(options).tasks == ("attentive_probe",)
    options = parser.instantiate_classes(parser.parse_args([]))
    assert read_config(options).tasks == ("attentive_probe", "linear_probe", "knn", "few_shot")
    assert read_config(options).linear.head.kind == "linear"
    assert read_config(options).probe.head.kind == "attentive"


def test_the_table_by_hand():
    """Two seeds of 10 and 20: 15 and a deviation of 7.1; one seed with its interval; no row, a dash."""
    a = [
        replace(ROW, task="knn", metric="top1", value=value, dataset="d", seed=seed)
        for seed, value in enumerate((10.0, 20.0))
    ]
    b = replace(ROW, task="knn", metric="top1", value=30.0, interval=(25.0, 36.0), dataset="d")
    c = replace(ROW, task="few_shot", metric="top1_3shot", value=40.0, interval=None, dataset="d")
    console = Console(width=150, record=True)
    console.print(summarise([("two", [a[0]]), ("two", [a[1]]), ("one", [b]), ("other", [c])]))
    text = console.export_text()
    assert re.search(r"two\s+│ 15.0 ± 7.1\s+│ -", text)
    assert re.search(r"one\s+│ 30.0\s+│ -", text)
    assert "25.0-36.0" in text
    assert re.search(r"other\s+│ -\s+│ 40.0", text)
    assert "3shot" in text


def test_a_config_file_and_the_command_line_over_it(tmp_path):
    (tmp_path / "c.yaml").write_text("probe:\n  epochs: 7\n  head:\n    num_queries: 2\nseed: 4\n")
    parser = build_parser()
    options = parser.instantiate_classes(parser.parse_args(["--config", str(tmp_path / "c.yaml"), "--seed=5"]))
    assert (options.probe.epochs, options.probe.head.num_queries, options.seed) == (7, 2, 5)


def test_the_published_config():
    parser = build_parser()
    path = FOLDER.parent / "attentive_probe_published.yaml"
    options = parser.instantiate_classes(parser.parse_args(["--config", str(path)]))
    assert (options.probe.mode, options.probe.epochs, len(options.probe.settings())) == ("augmented", 100, 14)
    assert options.probe.warmup(5) == 5


def test_help_lists_the_commands(capsys):
    assert evals_main(["--help"]) == 0
    assert "zeroshot" in capsys.readouterr().out
    assert evals_main(["imagent"]) == 2
    assert "'imagent' is no command" in capsys.readouterr().err
    assert imagenet.LATEST == "runs/latest"
