"""`python -m evals refcoco` with the light head on a few scenes and on photographs: the table, rows read again, resuming."""

import re

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from evals import refcoco
from evals.__main__ import main as evals_main
from evals.grounding.datasets import FOLDER
from evals.grounding.module import LightModule
from evals.results import read

TINY = "random:timm:aimv2_nano_patch4_32[depth=1,embed_dim=32,num_heads=2]"
LARGER = TINY.replace("nano_patch4_32[", "nano_patch4_32[img_size=64,")
FAST = ["--light.head.embed_dim=16", "--light.head.depth=2", "--light.epochs=2", "--light.batch_size=8"]
FAST += ["--features.num_workers=0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to run in: scenes, features and the text's vectors are made once for all tests of this file."""
    folder = tmp_path_factory.mktemp("refcoco")
    content = yaml.safe_load((FOLDER / "scenes.yaml").read_text())
    content |= {"counts": {"train": 6, "val": 3, "test": 3}, "scored": ["val", "test"], "reported": "test"}
    (folder / "few.yaml").write_text(yaml.safe_dump(content | {"name": "few"}))
    return folder


@pytest.fixture
def start(place, monkeypatch, capsys):
    """Run the command there; returns status, standard output and standard error."""
    monkeypatch.chdir(place)

    def run(*args):
        status = refcoco.main([*args])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures take longer than all the rest."""
    monkeypatch.setattr(refcoco, "draw_album", lambda *args, **options: [])
    monkeypatch.setattr(refcoco, "draw_learning", lambda path, *args, **options: path)


def own(folder, *rest, dataset="few.yaml"):
    return ["--dataset", dataset, *FAST, f"--out={folder}/evals", f"--results={folder}/rows.jsonl", *rest]


def report_of(out):
    """From the table on, without the seconds that it took."""
    return re.sub(r"^\d+ s;.*", "", out[out.index("  Grounding on") :], flags=re.MULTILINE)


def test_one_table_and_the_second_time_from_the_rows(start, place):
    """Two encoders of one group, of which the second is larger, and a third that is the first one again.

    Scenes are drawn at the encoder's size, so a group may have two sizes of them: the first decides pictures and difference.
    """
    args = own("a", "--encoder", f"ours={TINY},{LARGER}", "--encoder", f"other={TINY}", "--seed=3")
    status, out, err = start(*args)
    assert status == 0, err
    assert out.count("Grounding on few (synthetic, IoU 0.5 or more is right)") == 1
    assert re.search(r"val .*ours.* ± .* ± ", out)
    assert "2 seeds" in out
    assert out.count("chance: any object of the picture") == out.count("chance: best constant box") == 2
    assert "test: ours is +0.0 points above other on the same sentences (95% over pictures +0.0 to +0.0)" in out
    assert "a light head on frozen tokens, 2 epochs" in err
    rows = read(place / "a/rows.jsonl")
    # two jobs, two splits, two metrics: the third encoder's rows are there already
    assert [(row.split, row.metric) for row in rows] == 2 * [
        (split, metric) for split in ("val", "test") for metric in ("precision_at_1", "mean_iou")
    ]
    assert {(row.task, row.dataset, row.synthetic) for row in rows} == {("grounding_light", "few", True)}
    assert [row.seed for row in rows] == [3] * 4 + [4] * 4
    for row in rows:
        assert row.interval[0] <= row.value <= row.interval[1]
    assert set(rows[0].details["controls"]) == {"other_picture", "other_sentence"}
    pages = re.search(r"^pictures: (.*)$", out, flags=re.MULTILINE)[1].split(", ")
    assert {page.rsplit("/", 1)[1] for page in pages} >= {"examples.png", "learning.png"}
    for page in pages:
        assert min(Image.open(place / page).size) > 200
    status, again, err = start(*args)
    assert status == 0
    assert err.count("is in a/rows.jsonl already") == 3
    assert read(place / "a/rows.jsonl") == rows
    assert report_of(again) == report_of(out)


def test_an_interrupted_fit_goes_on_as_if_unbroken(start, undrawn, place, monkeypatch):
    args = ["--encoder", TINY, "--light.head.dropout=0.1"]
    assert start(*own("whole", *args))[0] == 0
    original, epochs = LightModule.training_step, set()

    def watched(self, batch, batch_idx):
        epochs.add(self.current_epoch)
        if stopping and self.current_epoch == 1:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(LightModule, "training_step", watched)
    stopping = True
    status, _, err = start(*own("broken", *args))
    assert status == 130
    assert err.strip().endswith("interrupted; what is finished is kept, the same command goes on")
    assert read(place / "broken/rows.jsonl") == []
    stopping = False
    epochs.clear()
    assert start(*own("broken", *args))[0] == 0
    assert epochs == {1}
    whole, broken = (read(place / name / "rows.jsonl") for name in ("whole", "broken"))
    assert [(row.value, row.interval) for row in whole] == [(row.value, row.interval) for row in broken]
    assert whole[0].details == broken[0].details
    heads = [load_file(place / rows[0].run / "head.safetensors") for rows in (whole, broken)]
    assert all(heads[0][name].equal(heads[1][name]) for name in heads[0])


@pytest.mark.shared_data
def test_photographs_in_the_official_layout(start, undrawn, shared_data, place):
    args = ["--encoder", TINY, "--data", str(shared_data / "refcoco_mini"), "--light.epochs=1"]
    status, out, err = start(*own("mini", *args, dataset="refcoco_mini"))
    assert status == 0, err
    assert "Grounding on refcoco_mini (IoU 0.5 or more is right)" in out
    assert "synthetic" not in out
    rows = read(place / "mini/rows.jsonl")
    assert {(row.split, row.synthetic) for row in rows} == {("val", False), ("testA", False), ("testB", False)}


def test_by_way_of_evals(start, capsys):
    assert evals_main(["refcoco", "--encoder", TINY, "--dataset", "no_such"]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--dataset", "scnes"], "scnes"),
        (["--dataset", "no_such.yaml"], "no_such.yaml"),
        (["--model", "yolo"], "--model='yolo' is unknown; there are light, grounding_dino"),
        (["--dino", "grounding_dino_small"], "--dino: it is not used by --model=light; say --model=grounding_dino"),
        (["--num_workers", "2"], "--num_workers: it is not used by --model=light"),
        (["--model", "grounding_dino", "--light.epochs=3"], "--light: it is not used by --model=grounding_dino"),
        (["--model", "grounding_dino", "--dino", "no_such"], "grounding recipe 'no_such' is not there"),
        (["--dataset", "refcoco"], "path: '../data/refcoco' is not a folder"),
        (["--data", "nowhere"], "path: 'nowhere' is not a folder"),
        (["--dataset", "few.yaml", "--data", "nowhere"], "--data=nowhere: scenes are drawn, not read"),
        (["--dataset", "few.yaml", "--images", "nowhere"], "--images=nowhere: scenes are drawn, not read"),
        (["--light.head.embed_dim=18"], "head.embed_dim=18 must be a multiple of 4"),
        (["--features.batch_size=0"], "features.batch_size=0 must be at least 1"),
        (["--light.lr", "fast"], "light.lr"),
        (["--encoder", "timm:no_such_model", "--dataset", "few.yaml"], "no_such_model"),
    ],
)
def test_bad_command_lines_are_one_line(args, message, start):
    encoder = [] if "--encoder" in args else ["--encoder", TINY]
    status, _, err = start(*args, *encoder)
    assert status == 2
    *before, error = err.strip().splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert not any(line.startswith(("error: ", "Traceback")) for line in before)
