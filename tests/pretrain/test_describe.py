"""The published recipes say what the paper says, and `describe` counts what they ask for."""

from pathlib import Path

import pytest

from pretrain.__main__ import main
from pretrain.describe import describe, known_vocab_size, parse, quantity, world_size
from pretrain.types import UserError

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"
RECIPES = CONFIGS / "recipes"
#: peak rate (Table A1) and encoder parameters in millions (reference, sections 4 and 1)
PUBLISHED = {
    "aimv2_large_patch14_224": (1e-3, 309.2),
    "aimv2_huge_patch14_224": (8e-4, 680.9),
    "aimv2_1b_patch14_224": (8e-4, 1235.0),
    "aimv2_3b_patch14_224": (4e-4, 2720.7),
    "aimv2_large_patch14_224_public": (1e-3, 309.2),
}


def recipe(name, *fields):
    return ["--config", str(RECIPES / f"{name}.yaml"), *fields]


def test_all_recipes_are_listed_here():
    assert {path.stem for path in RECIPES.glob("*.yaml")} == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_the_papers(name):
    lr, encoder_m = PUBLISHED[name]
    module, config = parse(recipe(name))
    optim, objective, data = module.optim_config, module.objective_config, config.data
    assert module.encoder_config.name == name.removesuffix("_public")
    assert (optim.lr, optim.min_lr, optim.weight_decay, optim.beta1, optim.beta2) == (lr, 1e-5, 1e-4, 0.9, 0.95)
    assert (optim.warmup_steps, optim.warmup_samples, optim.eps, optim.warmup_start_lr) == (12_500, None, 1e-8, 1e-6)
    assert (objective.image_weight, objective.text_weight, objective.prefix.kind) == (0.4, 1.0, "uniform")
    assert (config.trainer.gradient_clip_val, config.trainer.precision) == (1.0, "bf16-mixed")
    assert (data.tokenizer, data.augment.scale, data.augment.ratio, data.augment.flip) == (
        "google/siglip-base-patch16-224", (0.4, 1.0), (0.75, 1.33), 0.5,
    )  # fmt: skip
    about = describe(recipe(name))
    assert (about.global_batch, about.steps, about.samples) == (8192, 1_500_000, 12_288_000_000)
    assert about.params["encoder"] / 1e6 == pytest.approx(encoder_m, abs=0.05)
    assert 221 <= about.params["decoder"] / 1e6 <= 224
    assert (about.size.decoder.embed_dim, about.size.decoder.depth, about.size.vocab_size) == (1024, 12, 32_000)
    assert (about.size.num_patches, about.size.patch_pixels, about.predicted_patches) == (256, 588, 128)


def shares(name):
    """Share of the samples of each source and kind of caption, in percent."""
    mixture = parse(recipe(name))[1].data.mixture
    total = sum(source.weight for source in mixture.values())
    return {
        (key, kind): 100 * source.weight / total * part / sum(source.captions.values())
        for key, source in mixture.items()
        for kind, part in source.captions.items()
    }


def test_the_mixture_is_table_2():
    assert shares("aimv2_large_patch14_224") == pytest.approx(
        {
            ("dfn2b", "alt"): 30, ("dfn2b", "synthetic"): 30, ("coyo", "alt"): 9, ("hqitp", "alt"): 28,
            ("hqitp", "synthetic"): 3,
        }
    )  # fmt: skip
    public = {("dfn2b", "alt"): 100 * 30 / 39, ("coyo", "alt"): 100 * 9 / 39}
    assert shares("aimv2_large_patch14_224_public") == pytest.approx(public)


def test_what_is_printed(capsys):
    args = recipe(
        "aimv2_large_patch14_224", "--text-tokens", "20", "--trainer.max_steps=-1", "--max_samples=2000000000"
    )
    assert main(["describe", *args]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "309.2 M" in printed
    assert "20 of text" in printed
    assert "244,140 steps x 8,192 = 1,999,994,880 samples" in printed
    about = describe(args[:2], text_len=20)
    assert f"{1_999_994_880 * about.flops.training:.3e}" in printed


def test_overrides_and_tokens_change_the_numbers():
    config = ["--config", str(CONFIGS / "aimv2_nano_scenes.yaml")]
    plain, deeper = describe(config), describe([*config, "--model.encoder.depth=12"])
    assert deeper.flops.encoder == 2 * plain.flops.encoder
    assert (plain.global_batch, plain.steps, plain.size.vocab_size) == (16, 6300, 512)
    fewer = describe(config, text_len=10)
    assert fewer.flops.text_head * 77 == plain.flops.text_head * 10
    assert plain.dense_flops.forward > plain.flops.forward
    causal = describe([*config, "--model.objective.prefix.kind=causal"])
    assert (plain.predicted_patches, causal.predicted_patches) == (32, 63)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model.encoder.dept=3"], "model.encoder.dept"),
        (["--model.encoder.embed_dim=101"], "embed_dim=101 is not a multiple of the 4 heads"),
        (["--trainer.max_steps=-1"], "exactly one of trainer.max_steps and max_samples"),
        (["--data.tokenizer=some/one"], "--vocab-size"),
        (["--text-tokens", "78"], "outside 1..77"),
        (["--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_user_errors_are_one_line(args, words, capsys):
    assert main(["describe", "--config", str(CONFIGS / "aimv2_nano_scenes.yaml"), *args]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert words in error


def test_small_things():
    assert [quantity(value) for value in (12, 1.23456e6, 358e9, 999.96e9, 1.016e22)] == [
        "12 ", "1.235 M", "358.0 G", "1.000 T", "10.16 Z",
    ]  # fmt: skip
    trainer = type("Trainer", (), {"num_nodes": 2, "devices": "auto"})
    assert world_size(trainer) == 2
    for devices, expected in ((4, 8), ("3", 6), ([0, 2], 4), (-1, 2)):
        trainer.devices = devices
        assert world_size(trainer) == expected
    assert known_vocab_size("bpe", 700) == 700
    with pytest.raises(UserError, match="some/one"):
        known_vocab_size("some/one", 700)
