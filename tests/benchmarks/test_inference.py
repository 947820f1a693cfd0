import json
import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from benchmarks import inference, inference_memory, inference_models
from benchmarks.inference import add_ratios, in_turn, timing_fields
from benchmarks.inference_memory import peak_growth_mib
from benchmarks.inference_models import SIZES, Case, build, count_cost, pass_once
from benchmarks.throughput import peak_mib
from evals.encoder import Features, TokenEncoder
from evals.transforms import ImageTransform
from pretrain.types import ImageSpec, UserError

NANO, VIT = "aimv2_nano_patch4_32", "vit_tiny_patch16_224"


def flops_of(spec, img_size):
    return count_cost(Case("x", spec, img_size)).flops


def test_flops_of_aimv2_by_hand():
    # 64 patches of 48 pixels to 128; 6 blocks: q, k, v, out (4 D^2), SwiGLU (3 D F), two products of 64 x 64 pairs
    block = 2 * 64 * (4 * 128**2 + 3 * 128 * 384) + 4 * 64**2 * 128
    assert flops_of(NANO, 32) == 2 * 64 * 48 * 128 + 6 * block


def test_flops_of_a_vit_with_a_class_token_by_hand():
    # 2 x 2 patches of 768 pixels to 192, a class token; 12 blocks: 4 D^2, two layers of 4 D, 5 x 5 pairs
    block = 2 * 5 * (4 * 192**2 + 2 * 192 * 768) + 4 * 5**2 * 192
    assert flops_of(VIT, 32) == 2 * 4 * 768 * 192 + 12 * block


def test_flops_of_siglips_pooling_by_hand():
    # without a class token; behind the blocks one query attends over 4 tokens: q, out and the feed-forward on 1, k and v on 4
    width, hidden = 768, 3072
    block = 2 * 4 * (4 * width**2 + 2 * width * hidden) + 4 * 4**2 * width
    pooling = 2 * (2 * width**2 + 4 * 2 * width**2 + 2 * width * hidden) + 4 * 4 * width
    assert flops_of("vit_base_patch16_siglip_224", 32) == 2 * 4 * 768 * width + 12 * block + pooling


@pytest.mark.parametrize("size", SIZES)
def test_one_class_is_of_one_size(size):
    """Parameters within a tenth of AIMv2's, tokens as patch sizes have it."""
    for img_size in (224, 448):
        costs = {name: count_cost(Case(name, spec, img_size)) for name, spec in SIZES[size].items()}
        first = next(iter(costs.values()))
        for name, cost in costs.items():
            patches = (img_size // int(name.rsplit("/", 1)[1])) ** 2
            assert cost.tokens == patches + name.startswith(("CLIP", "DINO"))
            assert cost.params == pytest.approx(first.params, rel=0.1)
            assert cost.img_size == img_size


def test_positions_are_built_at_the_size_and_not_resampled():
    assert build(Case("x", VIT, 48)).pos_embed.shape[1] == 3 * 3 + 1
    assert build(Case("x", NANO, 40)).pos_embed.shape[1] == 10 * 10


class Twins(TokenEncoder):
    """One linear layer on pixels, with a text tower that must not count."""

    def __init__(self):
        super().__init__()
        self.transform, self.embed_dim = ImageTransform(ImageSpec(8)), 5
        self.layer = torch.nn.Linear(12, 5)
        self.text = torch.nn.Linear(100, 100)

    def grid(self, height, width):
        return height // 2, width // 2

    def forward(self, image_BCHW):
        tokens = self.layer(torch.nn.functional.unfold(image_BCHW, 2, stride=2).transpose(1, 2))
        return Features(tokens, tokens[:, :1])


@pytest.fixture
def loader(monkeypatch):
    def load_encoder(spec, *, seed=0):
        if spec != "twins":
            raise UserError(f"encoder {spec!r}: no such run or export")
        return Twins()

    monkeypatch.setitem(sys.modules, "evals.load", SimpleNamespace(load_encoder=load_encoder))


def test_any_encoder_at_its_own_size_without_its_text_side(loader):
    cost = count_cost(Case("x", "twins", None))
    assert (cost.img_size, cost.params, cost.tokens, cost.flops) == (8, 12 * 5 + 5, 1 + 16, 2 * 16 * 12 * 5)


def test_rounds_stop_before_the_budget_is_overrun():
    # two passes of 10 s: a round is 20 s; after three, a fourth would end at 80 s
    now = [0.0]

    def ten():
        now[0] += 10
        return now[0]

    def rounds(budget_s, max_rounds=9):
        now[0] = 0.0
        return in_turn([ten, ten], budget_s=budget_s, max_rounds=max_rounds, clock=lambda: now[0])

    assert rounds(65) == [[10, 30, 50], [20, 40, 60]]  # in turn
    assert rounds(80)[0] == [10, 30, 50, 70]
    assert rounds(-5) == [[10], [20]]  # one round at least
    assert len(rounds(1e9, max_rounds=2)[0]) == 2


def test_timing_arithmetic():
    assert timing_fields([0.2, 0.1, 0.4], [0.5, 1.0, 2.0], batch_size=8) == {
        "rounds": 3,
        "latency_ms": 100,
        "latency_ms_median": 200,
        "imgs_per_s": 16,
        "imgs_per_s_median": 8,
    }


def test_ratios_are_against_the_first_of_the_same_size():
    numbers = [("a", 32, 10, 4), ("b", 32, 5, 6), ("a", 64, 40, 1), ("b", 64, 60, 2)]
    rows = [
        {"name": n, "img_size": s, "latency_ms": t, "imgs_per_s": r, "latency_ms_median": 2 * t, "imgs_per_s_median": r}
        for n, s, t, r in numbers
    ]
    add_ratios(rows)
    assert [row["latency_ms_ratio"] for row in rows] == [1, 0.5, 1, 1.5]
    assert [row["latency_ms_median_ratio"] for row in rows] == [1, 0.5, 1, 1.5]
    assert [row["imgs_per_s_ratio"] for row in rows] == [1, 1.5, 1, 2]
    assert {row["against"] for row in rows} == {"a"}


def by_hand():
    """64 MiB and 32 MiB alive together, then 32 MiB: 96 at most. The 16 MiB made here do not count."""
    kept = torch.ones(2**22)

    def call():
        first, second = torch.ones(2**24), torch.ones(2**23)
        del first, second
        return torch.ones(2**23) + kept[0]

    return call


@pytest.mark.skipif(not inference_memory._CLEAR.is_file(), reason="the peak is read from /proc")
def test_memory_of_a_fresh_process_by_hand():
    assert peak_growth_mib(by_hand, name="x") == pytest.approx(96, abs=3)


@pytest.mark.skipif(not inference_memory._CLEAR.is_file(), reason="the peak is read from /proc")
def test_memory_of_a_model_against_the_profilers_record():
    case = Case("x", VIT, 448)  # 785 tokens
    assert peak_growth_mib(partial(pass_once, case), name="x") == pytest.approx(peak_mib(pass_once(case)), rel=0.25)


def test_a_killed_process_is_one_line(monkeypatch):
    class Pool:
        def __init__(self, *args, **options): ...
        def __enter__(self):
            return self

        def __exit__(self, *args): ...
        def submit(self, function, make):
            def result():
                raise BrokenProcessPool("killed")

            return SimpleNamespace(result=result)

    monkeypatch.setattr(inference_memory, "ProcessPoolExecutor", Pool)
    with pytest.raises(UserError, match="big at 448: the process that measures its memory was killed"):
        peak_growth_mib(by_hand, name="big at 448")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(inference, "peak_growth_mib", lambda make, *, name: None if "vit" in name else 12.5)


def test_the_command_writes_what_it_prints(quick, tmp_path, capsys):
    out = tmp_path / "results" / "inference.json"
    args = ["--encoders", NANO, VIT, "--img-sizes", "48", "32", "--rounds", "2", "--batch-size", "3", "--out", str(out)]
    assert inference.main([*args, "--device", "cpu", "--precision", "bf16"]) == 0
    content = json.loads(out.read_text())
    rows = content["rows"]
    assert [(row["name"], row["img_size"]) for row in rows] == [(NANO, 32), (VIT, 32), (NANO, 48), (VIT, 48)]
    assert (content["precision"], content["batch_size"], content["compiled"]) == ("bf16", 3, False)
    for row, first in zip(rows, (rows[0], rows[0], rows[2], rows[2])):
        assert row["rounds"] == 2
        assert row["latency_ms_ratio"] == pytest.approx(row["latency_ms"] / first["latency_ms"])
        assert row["imgs_per_s_ratio"] == pytest.approx(row["imgs_per_s"] / first["imgs_per_s"])
        assert row["latency_ms"] <= row["latency_ms_median"]
        assert row["imgs_per_s"] >= row["imgs_per_s_median"]
        assert row["weights_mib"] == pytest.approx(2 * row["params"] / 2**20)
    assert [row["peak_mib"] for row in rows] == [12.5, None, 12.5, None]
    table = out.with_suffix(".md").read_text()
    assert table.count(f"| {VIT} |") == 2
    assert "| not measured | 2 |" in table
    printed = capsys.readouterr().out
    assert "Cost of inference" in printed
    assert str(out) in printed


def test_a_loaded_encoder_runs_through(loader, quick, tmp_path):
    out = tmp_path / "inference.json"
    assert inference.main(["--encoders", "twins", "--rounds", "1", "--out", str(out), "--device", "cpu"]) == 0
    assert json.loads(out.read_text())["rows"][0]["tokens"] == 17


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--encoders", "vit_tinny"], "encoder 'vit_tinny': no such run or export"),
        (["--encoders", "resnet18"], "'resnet18' is a ResNet, not a VisionTransformer"),
        (["--encoders", VIT, "--img-sizes", "40"], "40 is not a multiple of the patch size 16"),
        (["--encoders", NANO, "--img-sizes", "30"], "img_size=30 is not a multiple of the patch size 4"),
        (["--encoders", NANO, "--img-sizes", "0"], "--img-sizes: 0 must be at least 1"),
        (["--rounds", "0"], "--rounds=0 must be above 0"),
        (["--batch-size", "0"], "--batch-size=0 must be above 0"),
        (["--budget-s", "-1"], "--budget-s=-1.0 must be above 0"),
    ],
)
def test_bad_options_are_one_line(loader, quick, tmp_path, capsys, args, message):
    assert inference.main([*args, "--device", "cpu", "--out", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("error:") == 1
    assert not list(tmp_path.iterdir())


def test_no_gpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert inference.main(["--device", "cuda", "--out", str(tmp_path / "x.json")]) == 2
    assert "--device=cuda: torch sees no GPU here" in capsys.readouterr().err


def test_default_cases_are_four_models_at_three_sizes():
    cases = inference.make_cases(inference.parse([]))
    assert [case.img_size for case in cases] == [224] * 4 + [336] * 4 + [448] * 4
    assert cases[0].spec == "aimv2_large_patch14_224"
    assert inference_models.IMG_SIZES == (224, 336, 448)
