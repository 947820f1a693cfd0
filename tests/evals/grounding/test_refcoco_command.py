"""The light head from pictures to rows, on a tiny random encoder: what is learned, resuming, what is counted, the command."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from evals import refcoco
from evals.grounding.answers import read_answers
from evals.grounding.datasets import load_ref_config
from evals.grounding.job import JobConfig, LightJob
from evals.grounding.light_config import LightConfig, LightHeadConfig
from evals.grounding.light_head import load_light_head
from evals.grounding.module import LightModule
from evals.load import load_encoder
from evals.results import read
from evals.transforms import ImageTransform, whole_picture
from pretrain.export import save_json, save_tensors
from pretrain.models.vision import EncoderConfig, build_encoder
from pretrain.types import ImageSpec, UserError

TINY = EncoderConfig(embed_dim=32, depth=1, num_heads=4, mlp_hidden_dim=64, img_size=16)
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
#: Pictures of each split.
SPLITS = {"train": 24, "val": 6, "testA": 6}
LIGHT = LightConfig(
    head=LightHeadConfig(embed_dim=32, num_heads=2),
    epochs=3,
    batch_size=8,
    lr=3e-3,
    warmup_epochs=0.5,
    precision="fp32",
)


def draw_picture(rng):
    """A red and a blue square of 8 to 12 pixels, side by side on a grey picture 40 wide and 20 high; and their boxes."""
    pixels, boxes = np.full((20, 40, 3), 128, dtype=np.uint8), {}
    for half, name in enumerate(rng.permutation(list(COLOURS))):
        side = int(rng.integers(8, 13))
        x, y = 20 * half + int(rng.integers(0, 20 - side)), int(rng.integers(0, 20 - side))
        pixels[y : y + side, x : x + side] = COLOURS[name]
        boxes[str(name)] = (x, y, side, side)
    return Image.fromarray(pixels), boxes


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A data set in RefCOCO's layout that a few hundred steps learn, and its config."""
    root, rng = tmp_path_factory.mktemp("release"), np.random.default_rng(0)
    images, annotations, refs = [], [], []
    (root / "train2014").mkdir()
    for split, count in SPLITS.items():
        for _ in range(count):
            number = len(images) + 1
            picture, boxes = draw_picture(rng)
            picture.save(root / "train2014" / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": 20, "width": 40})
            for name, box in boxes.items():
                ids = {"ref_id": len(refs) + 1, "ann_id": len(refs) + 100, "image_id": number}
                annotations.append({"id": ids["ann_id"], "image_id": number, "category_id": 1, "bbox": list(box)})
                texts = [f"the {name} square", f"{name} one"]
                sentences = [{"sent": text, "sent_id": 2 * len(refs) + k} for k, text in enumerate(texts)]
                refs.append({**ids, "split": split, "sentences": sentences})
    (root / "refcoco").mkdir()
    (root / "refcoco" / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    config = {"kind": "release", "split_rule": "by hand", "source": "drawn", "license": "none", "path": str(root)}
    config |= {"annotations": "refcoco", "images": ["train2014"], "scored": ["testA"]}
    (root / "squares.yaml").write_text(json.dumps(config))
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's export with random weights."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_tensors(build_encoder(TINY).state_dict(), folder / "export" / "encoder.safetensors")
    encoder = {name: value for name, value in vars(TINY).items() if value is not None}
    image = {"img_size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    save_json({"format": 1, "encoder": encoder, "image": image, "info": {}}, folder / "export" / "encoder.json")
    return str(folder)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where features are kept: encoded once for all tests."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def start(tmp_path, release, run, kept):
    def build(light=LIGHT, *, out="evals", data=None, seed=0, spec=run):
        features = dataclasses.replace(JobConfig().features, folder=kept, num_workers=0)
        config = JobConfig(light, features, tmp_path / out, tmp_path / f"{out}.jsonl")
        notes = []
        data = data or load_ref_config(str(release / "squares.yaml")).build(img_size=16, note=notes.append)
        job = LightJob(load_encoder(spec), data, config, seed=seed, note=notes.append, accelerator="cpu")
        job.notes = notes
        return job

    return build


def test_colours_are_found_and_rows_are_written(start):
    job = start(dataclasses.replace(LIGHT, epochs=30))
    rows = job.run()
    assert [(row.split, row.metric) for row in rows] == [("testA", "precision_at_1"), ("testA", "mean_iou")]
    first = rows[0]
    # each picture has two objects, far apart: at random 50; the controls give the other one away
    assert first.details["chance"]["random_object"] == 50
    assert first.value > 70
    assert first.details["controls"]["other_sentence"] < 30
    assert first.details["controls"]["other_picture"] < first.value - 20
    assert first.n == 6 * 2 * 2
    assert first.details["pictures"] == 6
    assert first.interval[0] <= first.value <= first.interval[1]
    assert len(first.details["held_out_precision_at_1"]) == 30
    assert (first.task, first.synthetic, first.encoder) == ("grounding_light", False, job.encoder.provenance.spec)
    assert read(job.config.results) == rows
    assert not (job.folder / "checkpoints").exists()


def iou(box, other):
    """Restated: areas of the overlap and of both."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    inner = max(0, width) * max(0, height)
    return inner / (sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)) - inner)


def test_the_score_is_that_of_the_answers_and_of_the_saved_head(start):
    job = start()
    rows = job.run()
    scored = job.data.scored[0]
    answers = {answer.sent_id: answer.box_K4[0] for answer in read_answers(job.folder / "answers_testA.csv")}
    right = [iou(answers[e.sent_id], e.box) >= 0.5 for e in scored.expressions]
    assert rows[0].value == pytest.approx(100 * np.mean(right))
    head = load_light_head(job.folder / "head.safetensors")
    split = job._splits()["testA"]
    batch = split.batch(np.arange(len(scored)))
    box_B4 = head(batch.tokens_BNV, batch.text_BLE, batch.valid_BL)
    for (cx, cy, w, h), expression in zip(box_B4.tolist(), scored.expressions, strict=True):
        corners = np.clip([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 0, 1) * (40, 20, 40, 20)
        assert answers[expression.sent_id] == pytest.approx(corners, abs=0.01)


@pytest.mark.parametrize("stop", [(1, 2), (0, 1)])
def test_an_interrupted_fit_goes_on(start, monkeypatch, stop):
    """With dropout: stopped in the middle of an epoch and gone on with, the weights are the same."""
    light = dataclasses.replace(LIGHT, head=dataclasses.replace(LIGHT.head, dropout=0.2))
    whole = start(light, out="whole")
    rows = whole.run()

    def interrupted(module, batch, batch_idx):
        if (module.current_epoch, batch_idx) == stop:
            raise KeyboardInterrupt
        return plain(module, batch, batch_idx)

    plain = LightModule.training_step
    monkeypatch.setattr(LightModule, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(light, out="broken").run()
    monkeypatch.setattr(LightModule, "training_step", plain)
    torch.manual_seed(1234)  # another process, other random numbers
    broken = start(light, out="broken")
    again = broken.run()
    assert again[0].details["held_out_precision_at_1"] == rows[0].details["held_out_precision_at_1"]
    states = [load_light_head(job.folder / "head.safetensors").state_dict() for job in (whole, broken)]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_finished_rows_are_reused(start, monkeypatch):
    rows = start().run()
    monkeypatch.setattr(LightJob, "_fit", lambda *args: pytest.fail("trained again"))
    again = start()
    assert again.run() == rows
    assert any("already" in note for note in again.notes)
    with pytest.raises(pytest.fail.Exception):
        start(dataclasses.replace(LIGHT, lr=1e-3)).run()


@pytest.fixture
def damaged(release, tmp_path):
    """The splits with some pictures of the training and the test split cut short."""

    def build(train, test):
        images = tmp_path / "cut"
        images.mkdir()
        for path in (release / "train2014").iterdir():
            number, whole = int(path.stem), path.read_bytes()
            bad = number <= train or number > sum(SPLITS.values()) - test
            (images / path.name).write_bytes(whole[: len(whole) // 2] if bad else whole)
        return load_ref_config(str(release / "squares.yaml")).build(img_size=16, images=str(images), note=print)

    return build


def test_truncated_pictures_are_counted_and_their_sentences_left_out(start, damaged):
    job = start(data=damaged(train=1, test=1))
    rows = job.run()
    assert rows[0].n == 5 * 2 * 2
    assert rows[0].details["unreadable"] == {"train": 1, "val": 0, "testA": 1}
    assert any("testA: 1 unreadable pictures are left out" in note for note in job.notes)


def test_too_many_truncated_pictures_are_an_error(start, damaged):
    with pytest.raises(UserError, match="4 of 24 pictures cannot be read, more than 5%; the first is") as caught:
        start(data=damaged(train=4, test=0)).run()
    assert "\n" not in str(caught.value)


def test_divergence_is_told(start, tmp_path):
    light = dataclasses.replace(LIGHT, lr=1e30, clip=None, warmup_epochs=0.0)
    with pytest.raises(UserError, match=r"diverged in epoch 1 of 3 .*light.lr=1e\+30 must be smaller"):
        start(light).run()
    assert not list((tmp_path / "evals").rglob("*.ckpt"))


def test_nothing_of_a_picture_is_cut_off():
    """A red column at the left edge of a wide picture: a crop to the middle would lose it."""
    wide = Image.new("RGB", (40, 20))
    wide.paste((255, 0, 0), (0, 0, 10, 20))
    cropping = ImageTransform(ImageSpec(16), crop_pct=0.875)
    assert not cropping(wide)[0, :, :2].any()
    seen = whole_picture(cropping)(wide)
    assert seen.shape == (3, 16, 16)
    assert (seen[0, :, :3] > 200).all()
    assert whole_picture(cropping, img_size=8)(wide).shape == (3, 8, 8)


# the command


@pytest.fixture
def command(tmp_path, release, run, kept, capsys):
    """The command on the squares; returns status, output and errors."""
    fixed = ["--out", str(tmp_path / "evals"), "--results", str(tmp_path / "r.jsonl"), "--features.num_workers=0"]
    fixed += ["--features.folder", str(kept), "--light.epochs=2", "--light.batch_size=16", "--light.precision=fp32"]

    def start(*args):
        status = refcoco.main([*fixed, *args])
        return status, *capsys.readouterr()

    return start


def test_command(command, release, run, tmp_path):
    args = ["--encoder", f"ours={run},{run}", "--encoder", f"random=random:{run}"]
    status, out, _ = command(*args, "--dataset", str(release / "squares.yaml"))
    assert status == 0
    assert "Grounding on squares (IoU 0.5 or more is right)" in out
    assert "2 seeds" in out
    assert "chance: any object of the picture" in out
    assert "points above random on the same sentences" in out
    rows = read(tmp_path / "r.jsonl")
    assert [row.seed for row in rows if row.metric == "precision_at_1"] == [0, 1, 0]
    assert {row.objective for row in rows} == {"unknown", "random"}
    pictures = tmp_path / "evals/grounding_light/squares/pictures-s0"
    for name in ("examples.png", "misses.png", "learning.png"):
        with Image.open(pictures / name) as page:
            assert min(page.size) > 200
        assert name in out


def test_another_place_of_the_data(command, release, run):
    """A place alone is RefCOCO's, which has a testB; this has none."""
    status, _, err = command("--encoder", run, "--data", str(release))
    assert status == 2
    assert "error: refcoco: " in err
    assert "has no split 'testB' (did you mean 'testA'?); it has testA, train, val" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--light.lr=0"], "light.lr=0.0 must be above 0"),
        (["--light.lrr=1"], "light.lrr"),
        (["--light.img_size=18"], "takes multiples of its patch"),
        (["--model=dino"], "--model='dino' is unknown; there are light, grounding_dino"),
        (["--dino=x"], "--dino: it is not used by --model=light"),
        (["--dataset=refcocoo"], "'refcocoo' is unknown"),
        (["--light.text_encoder=/no/such/folder"], "text encoder '/no/such/folder' cannot be loaded"),
        (["--images=/no/such/folder"], "'/no/such/folder' is not there; wanted: the folder that holds '1.png'"),
        (["--encoder", "runs/none"], "no such run or export"),
    ],
)
def test_command_with_bad_input(command, release, run, args, words):
    more = [] if any("--dataset" in arg for arg in args) else ["--dataset", str(release / "squares.yaml")]
    status, _, err = command(*args, *more, *([] if "--encoder" in args else ["--encoder", run]))
    assert status == 2
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]


def test_a_pickle_with_code_in_it_is_not_run(command, release, run, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    folder = tmp_path / "refcoco"
    folder.mkdir()
    (folder / "instances.json").write_bytes((release / "refcoco" / "instances.json").read_bytes())
    (folder / "refs(unc).p").write_bytes(pickle.dumps([Trap()]))
    args = ["--dataset", str(release / "squares.yaml"), "--data", str(tmp_path), "--encoder", run]
    status, _, err = command(*args, "--images", str(release / "train2014"))
    assert status == 2
    assert "is a pickle with code in it: it asks for" in err
    assert err.count("error: ") == 1
    assert not (tmp_path / "sprung").exists()
