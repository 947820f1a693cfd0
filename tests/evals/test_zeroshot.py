import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from evals import default_run, results, zeroshot
from evals.data.config import FOLDER
from evals.data.labelled import BadSample, LabelledSet
from evals.encoder import Features, Provenance, TextTower, TokenEncoder
from evals.text.caption_scorer import CaptionScorer, load_decoder
from evals.text.evaluate import classification_job, run_job
from evals.text.prompts import PromptConfig, default_prompts, load_prompts
from evals.text.scorers import TowerScorer
from evals.transforms import ImageTransform
from pretrain import cli
from pretrain.run import check_latest
from pretrain.types import Fault, ImageSpec, UserError


@pytest.fixture(scope="module")
def tiny_run(tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zeroshot")
    (folder / "tiny.yaml").write_text(
        yaml.safe_dump(tiny_config({"decoder": {"embed_dim": 32, "depth": 1, "num_heads": 2}}))
    )
    assert cli.main(["fit", "--config", str(folder / "tiny.yaml"), "--runs", str(folder / "runs"), "--name", "a"]) == 0
    return folder / "runs" / "a"


@pytest.fixture
def small_scenes(tmp_path):
    """Scenes as a data set of 20 test pictures."""
    config = yaml.safe_load((FOLDER / "scenes_shape_color.yaml").read_text())
    path = tmp_path / "scenes_shape_color.yaml"
    path.write_text(yaml.safe_dump(config | {"num_test": 20}))
    return str(path)


def test_a_run_end_to_end_and_once_more(tiny_run, small_scenes, tmp_path, capsys, monkeypatch):
    file = tmp_path / "out" / "results.jsonl"
    args = ["--encoder", str(tiny_run), "--dataset", small_scenes, "--retrieval", "scenes", "--num", "12"]
    args += ["--results", str(file)]
    assert zeroshot.main(args) == 0
    shown = capsys.readouterr().out
    assert "caption likelihood" in shown
    assert "scenes (synthetic)" in shown
    rows = results.read(file)
    own, twin = rows[:9], rows[9:]
    names = ["top1", "top5", "mean_per_class", *(f"image_to_text_recall@{k}" for k in (1, 5, 10))]
    names += [f"text_to_image_recall@{k}" for k in (1, 5, 10)]
    assert [row.metric for row in own] == [row.metric for row in twin] == names
    assert {row.task for row in own[:3]} == {"zero_shot"}
    assert {row.task for row in own[3:]} == {"retrieval"}
    for row in rows:
        assert (row.synthetic, row.split, row.seed, row.details["scorer"]) == (True, "test", 0, "caption likelihood")
        assert 0 <= row.value <= 100
        assert row.interval is None or row.interval[0] <= row.value <= row.interval[1]
    assert (own[0].objective, own[0].samples_seen, own[0].encoder) == ("aimv2", 8, str(tiny_run))
    assert (twin[0].objective, twin[0].encoder) == ("random", f"random:{tiny_run}")
    assert own[0].details["chance"] == pytest.approx(100 / 64)
    assert own[0].n == own[3].n == 12
    predictions = json.loads((Path(own[0].run) / "predictions.json").read_text())
    assert len(predictions["best"]) == 12
    # what is finished is found again, and nothing is scored
    monkeypatch.setattr(CaptionScorer, "similarity", None)
    assert zeroshot.main(args) == 0
    again = capsys.readouterr()
    assert again.err.count("not made again") == 4
    assert again.out.split("Captions")[0] == shown.split("Captions")[0]
    assert results.read(file) == rows


def test_half_a_job_is_made_again(tiny_run, small_scenes, tmp_path):
    file = tmp_path / "results.jsonl"
    args = ["--encoder", str(tiny_run), "--dataset", small_scenes, "--num", "8", "--alone", "--results", str(file)]
    assert zeroshot.main(args) == 0
    lines = file.read_text().splitlines()
    file.write_text(lines[0] + "\n" + lines[1][:40])  # a crash while the rows were written
    assert zeroshot.main(args) == 0
    rows = results.read(file)
    assert [row.metric for row in rows] == ["top1", "top1", "top5", "mean_per_class"]
    assert rows[0].value == rows[1].value


def test_other_settings_are_other_rows(tiny_run, tmp_path):
    file = tmp_path / "results.jsonl"
    args = ["--encoder", str(tiny_run), "--retrieval", "scenes", "--num", "5", "--alone", "--results", str(file)]
    for more in ([], ["--tokens", "sum"], ["--prior", "grey"], ["--seed", "1"]):
        assert zeroshot.main([*args, *more]) == 0
    assert len({row.key() for row in results.read(file)}) == 4 * 6


def test_random_decoder_is_drawn_from_the_seed(tiny_run):
    states = [load_decoder(spec, seed=seed)[0].state_dict() for spec, seed in
              [(f"random:{tiny_run}", 0), (f"random:{tiny_run}", 0), (f"random:{tiny_run}", 1), (str(tiny_run), 0)]]  # fmt: skip
    heads = [state["decoder.text_head.weight"] for state in states]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], heads[3])
    assert load_decoder("timm:vit_tiny_patch16_224", seed=0) is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num", "0"], "--num=0 must be at least 1"),
        (["--seed", "-1"], "--seed=-1 must be at least 0"),
        (["--dataset", "scenes_shapes"], "'scenes_shapes' is unknown"),
        (["--retrieval", "flickr30k"], "--retrieval: 'flickr30k' is unknown; give one of coco, flickr1k, scenes"),
        (["--dataset", "scenes_shape", "--prompts", "loud"], "--prompts: 'loud' is unknown; give one of generic"),
        (["--dataset", "scenes_shape", "--prompts", "x/y.yaml"], "--prompts: 'x/y.yaml' is no file"),
        (["--retrieval", "coco", "--prompts", "word"], "--prompts=word words classes"),
        (["--retrieval", "coco", "flickr1k", "--data", "x"], "--data=x names one place"),
        (["--retrieval", "scenes", "--data", "x"], "scenes are drawn, not read"),
        (["--encoder", "nowhere/at/all", "--retrieval", "scenes"], "nowhere/at/all"),
        (["--encoder", "RUN", "--alone", "--retrieval", "coco", "--data", "no/coco"], "'no/coco' is no folder with"),
        (["--encoder", "RUN", "--alone", "--retrieval", "flickr1k", "--data", "no/shards"], "no/shards"),
    ],
)
def test_bad_input_is_one_line(args, message, tiny_run, capsys, tmp_path):
    args = [str(tiny_run) if arg == "RUN" else arg for arg in args]
    assert zeroshot.main([*args, "--results", str(tmp_path / "r.jsonl")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("error: ")
    assert "\n" not in error


class Names(TextTower):
    """Vectors of "red", "green" and "blue"; a template's other words are not heard."""

    def encode_text(self, texts):
        return torch.tensor([[float(word in text) for word in ("red", "green", "blue")] for text in texts])


class Eye(TokenEncoder):
    """The picture's vector is its mean colour."""

    def __init__(self, *, text=True):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.text = Names() if text else None
        self.embed_dim = 3
        self.transform = ImageTransform(ImageSpec(4, mean=(0, 0, 0), std=(1, 1, 1)))
        self.provenance = Provenance("open_clip:eye", "eye", "clip", samples_seen=7, run="weights.pt")

    def forward(self, image_BCHW):
        vector = image_BCHW.mean((2, 3))
        return Features(vector[:, None], vector[:, None][:, :0], vector)

    def grid(self, height, width):
        return 1, 1


class Swatches(LabelledSet):
    """Plain colours; picture 3 cannot be read."""

    name, split, classes = "swatches", "test", ("red", "green", "blue")
    pixels = ((255, 10, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (90, 255, 0))
    label_N = np.array([0, 1, 2, 0, 0])

    def load(self, index):
        if index == 3:
            raise BadSample(Fault("corrupt", self.key(3), "cut off"))
        return Image.new("RGB", (4, 4), self.pixels[index])

    def key(self, index):
        return f"swatch{index}"

    def pictures_identity(self):
        return "swatches"


def test_a_text_tower_on_a_set_with_an_unreadable_picture(tmp_path):
    notes = []
    job = classification_job(Swatches(), PromptConfig("test", ("a {} thing", "{}")))
    rows = run_job(job, TowerScorer(Eye()), seed=0, results=tmp_path / "r.jsonl", fingerprint="f", note=notes.append)
    # right: red, green, blue; wrong: the red that looks green. top5 of 3 classes is left out
    assert [(row.metric, row.n) for row in rows] == [("top1", 4), ("mean_per_class", 4)]
    assert [row.value for row in rows] == pytest.approx([75.0, 100 * 2.5 / 3])
    assert rows[0].details["left_out"] == 1
    assert rows[0].details["scorer"] == "cosine"
    assert (rows[0].objective, rows[0].samples_seen, rows[0].checkpoint_hash) == ("clip", 7, "f")
    assert rows[0].interval == pytest.approx((30.06, 95.44), abs=0.01)  # Wilson, 3 of 4
    assert notes == ["open_clip:eye, zero_shot on swatches: 1 pictures left out; the first: corrupt: swatch3: cut off"]


def test_neither_tower_nor_decoder_is_an_error():
    with pytest.raises(UserError, match="neither a text tower nor a decoder"):
        zeroshot.build_scorer(Eye(text=False), scoring=zeroshot.RETRIEVAL, seed=0)
    assert isinstance(zeroshot.build_scorer(Eye(), scoring=zeroshot.RETRIEVAL, seed=0), TowerScorer)


def test_broken_weights_are_an_error(tmp_path):
    class Broken(Eye):
        def forward(self, image_BCHW):
            nan = image_BCHW.mean((2, 3)) * float("nan")
            return Features(nan[:, None], nan[:, None][:, :0], nan)

    job = classification_job(Swatches(), PromptConfig("test", ("{}",)))
    with pytest.raises(UserError, match="scores are NaN"):
        run_job(job, TowerScorer(Broken()), seed=0, results=tmp_path / "r.jsonl", fingerprint="f")


def test_choice_of_pictures_is_the_seeds():
    whole = Swatches()
    chosen = [zeroshot.choose(whole, num=3, seed=seed).index_N.tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert zeroshot.choose(whole, num=9, seed=0) is whole


def test_prompts_word_classes():
    prompts = PromptConfig("p", ("{a} {}", "the {}."))
    assert prompts.word(["orange_star", "ring"]) == [["an orange star", "the orange star."], ["a ring", "the ring."]]


def test_shipped_prompts(monkeypatch):
    assert default_prompts("scenes_shape").name == "scenes_shape"
    assert default_prompts("imagenet1k_parquet").name == "imagenet1k"
    assert default_prompts("pets").name == "generic"
    imagenet = load_prompts("imagenet1k")
    words = imagenet.word([str(number) for number in range(1000)])
    assert len(words) == 1000
    assert len(words[0]) == 80
    assert "a bad photo of a tench." in words[0]
    with pytest.raises(UserError, match="class_names has 1000 names, the data set has 2 classes"):
        imagenet.word(["a", "b"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("templates: []", "no list of sentences"),
        ("templates: [a photo]", "must hold {} once"),
        ("templates: ['{} {}']", "must hold {} once"),
        ("templates: ['{}', '{}']", "there twice"),
        ("templates: open_clip:all", "'open_clip:all' is unknown"),
        ("template: ['{}']", "field 'template' is unknown; known are templates, class_names"),
        ("templates: ['{}']\nclass_names: cifar", "neither a list of names"),
        ("- x", "holds no fields"),
        ("a: [", "cannot be read"),
    ],
)
def test_bad_prompts(content, message, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message.replace("{", "\\{")) as error:
        load_prompts(str(path))
    assert "\n" not in str(error.value)


class TestDefaultRun:
    """With a stand-in for the process that trains."""

    @pytest.fixture
    def commands(self, tmp_path, monkeypatch, tiny_run):
        monkeypatch.chdir(tmp_path)
        commands = []

        class Done:
            returncode = 0

        def train(command, *, check):
            commands.append(command[1:])
            if Done.returncode == 0:
                default_run.RUNS.mkdir(exist_ok=True)
                (default_run.RUNS / "default").symlink_to(tiny_run)
                check_latest(default_run.RUNS / "default").symlink_to("default")
            return Done

        monkeypatch.setattr(default_run.subprocess, "run", train)
        commands.append(Done)
        return commands

    def test_trained_once(self, commands):
        assert default_run.train_default_run() == default_run.RUNS / "default"
        assert commands[1][:4] == ["-m", "pretrain", "fit", "--config"]
        assert commands[1][4].endswith("configs/pretrain/aimv2_nano_scenes.yaml")
        latest = check_latest(default_run.RUNS / "default")
        latest.unlink()  # somebody removed the link: the finished run is taken, and linked again
        assert default_run.train_default_run() == default_run.RUNS / "default"
        assert len(commands) == 2
        assert latest.resolve() == (default_run.RUNS / "default").resolve()

    def test_latest_is_trained_where_there_is_none(self, commands, capsys):
        assert default_run.load_or_train("runs/latest", seed=0).provenance.objective == "aimv2"
        assert "training the default one first" in capsys.readouterr().out

    def test_an_interrupted_one_goes_on(self, commands):
        checkpoint = default_run.RUNS / "default" / "checkpoints" / "last.ckpt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        commands[0].returncode = 1
        with pytest.raises(UserError, match="failed with status 1; start it with: make pretrain"):
            default_run.train_default_run()
        assert commands[1][-2:] == ["--ckpt_path", "last"]

    def test_ctrl_c_is_passed_on(self, commands):
        commands[0].returncode = 130
        with pytest.raises(KeyboardInterrupt):
            default_run.train_default_run()
