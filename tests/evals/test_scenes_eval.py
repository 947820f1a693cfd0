import numpy as np
import torch

from evals.scenes import draw_set, first_word, fit_probe, named_right, pooled_features, summarise
from pretrain.data.scenes import COLORS, LEVELS, SHAPES
from pretrain.types import ImageSpec


def test_first_word_by_hand():
    assert SHAPES[first_word("two red stars and a circle", SHAPES)] == "star"
    assert COLORS[first_word("a redhead with an orange heart", COLORS)] == "orange"  # "red" is only part of a word
    assert first_word("nothing here", SHAPES) is None


def test_named_right_by_hand():
    scenes = draw_set("test", num=4, img_size=32).scenes
    right = [f"a {COLORS[s.largest_color_label]} {SHAPES[s.largest_shape_label]}" for s in scenes]
    wrong_color = COLORS[(scenes[1].largest_color_label + 1) % len(COLORS)]
    wrong_shape = SHAPES[(scenes[2].largest_shape_label + 1) % len(SHAPES)]
    captions = [
        right[0],
        f"a {wrong_color} {SHAPES[scenes[1].largest_shape_label]}, {right[1]}",  # the right one comes second
        f"a {COLORS[scenes[2].largest_color_label]} {wrong_shape}",
        "",
    ]
    hits = named_right(captions, scenes)
    assert hits["color"].tolist() == [True, False, True, False]
    assert hits["shape"].tolist() == [True, True, False, False]
    assert hits["both"].tolist() == [True, False, False, False]


def test_sets_hold_every_level_alike_and_splits_differ():
    test, other = draw_set("test", num=50, img_size=32), draw_set("val", num=50, img_size=32)
    assert {level: int((test.level == level).sum()) for level in LEVELS} == dict.fromkeys(LEVELS, 10)
    assert not any((a == b).all() for a, b in zip(test.image_BCHW, other.image_BCHW, strict=True))
    assert test.labels("shape").max() < len(SHAPES)


def test_probe_reads_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 600)
    signal = np.eye(4)[labels] + 0.1 * rng.normal(size=(600, 4))
    noise = rng.normal(size=(600, 4))
    for features, low, high in ((signal, 0.98, 1.0), (noise, 0.1, 0.4)):
        accuracy = fit_probe(features[:400], labels[:400]).score(features[400:], labels[400:])
        assert low <= accuracy <= high


def test_features_are_the_mean_of_the_tokens(tiny):
    encoder, _ = tiny()
    encoder.eval()
    image = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    spec = ImageSpec(16)
    expected = encoder.forward_features(spec.normalise(image)).mean(1).detach().numpy()
    np.testing.assert_allclose(pooled_features(encoder, image, spec), expected, atol=1e-5)


def test_summary_is_mean_and_deviation_by_hand():
    def result(value):
        by_level = {"all": value, **dict.fromkeys(LEVELS, value)}
        return {"num_test": 10, "scores": {"probe": {"shape": by_level, "color": by_level}}}

    table = summarise([result(40.0), result(50.0)])
    cells = list(table.columns[1].cells)
    assert cells == ["12.5", "45.0 ± 7.1"]  # sqrt(((-5)^2 + 5^2) / 1)
