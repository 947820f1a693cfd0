"""The online evaluation on encoders whose scores are known beforehand, without a run; tests/smoke/test_online.py has runs."""

import random
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torch.nn import functional as F

from evals import online
from evals.online import Encoded, OnlineProbe, Part, encode_part, evaluating, knn_top1, probe_top1, read_part
from evals.probe.config import ProbeConfig
from evals.probe.heads import HeadConfig
from evals.statistics import wilson
from pretrain.callbacks.throughput import Throughput
from pretrain.rng import draw_rng
from pretrain.types import ImageSpec, UserError

PROBE = ProbeConfig(
    lrs=(1e-2,), weight_decays=(0.05,), epochs=10, batch_size=32, held_out=0.2, head=HeadConfig(num_heads=2)
)


class Colours(nn.Module):
    """Tokens are the colours of 16 patches; noise while it trains, or the same for all pictures where `constant`."""

    embed_dim = 8

    def __init__(self, *, constant=False):
        super().__init__()
        self.patch_embed = SimpleNamespace(num_patches=16)
        self.scale, self.frozen = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()), requires_grad=False)
        self.noise, self.constant, self.autocast = nn.Dropout(0.9), constant, []

    def forward_features(self, image_BCHW):
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        tokens_BDN = F.pad(F.avg_pool2d(image_BCHW, 4).flatten(2), (0, 0, 0, 5))
        tokens_BND = self.noise(self.scale * tokens_BDN.transpose(1, 2))
        return torch.ones_like(tokens_BND) if self.constant else tokens_BND


class Log:
    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step):
        self.rows.append((step, metrics))


@pytest.fixture
def trainer():
    return SimpleNamespace(
        is_global_zero=True,
        global_step=0,
        datamodule=SimpleNamespace(image=ImageSpec(16), batch_size=8),
        strategy=SimpleNamespace(broadcast=lambda value: value),
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
        loggers=[Log()],
        callbacks=[],
    )


@pytest.fixture
def build(trainer, drawn_set, monkeypatch):
    """A callback that has read drawn pictures of three classes, and a module around an encoder."""

    def start(encoder, *, bad=(), **options):
        def drawn(config, split, *, img_size):
            assert split == "train", "the test split is not looked at"
            return drawn_set(config.num_train, split=split, bad=bad)

        monkeypatch.setattr(online, "build_set", drawn)
        options = {"every_n_steps": 2, "num_train": 90, "num_test": 30, "knn_k": 5, "num_heads": 2} | options
        callback, module = OnlineProbe(**options), SimpleNamespace(encoder=encoder, device=torch.device("cpu"))
        trainer.callbacks.append(callback)
        callback.setup(trainer, module, "fit")
        callback.on_fit_start(trainer, module)
        return callback, module

    return start


def test_classes_apart_score_high_and_a_constant_encoder_scores_chance(trainer, build, capsys):
    """One answer for all is right for the share of that class, about a third."""
    callback, module = build(Colours())
    callback.evaluate(trainer, module)
    assert callback.values[0]["knn_top1"] == 100
    assert callback.values[0]["probe_top1"] >= 90
    module.encoder = Colours(constant=True)
    trainer.global_step = 7
    callback.evaluate(trainer, module)
    shares = 100 * np.bincount(callback._parts["test"].label_S) / 30
    for value in callback.values[7].values():
        assert np.isclose(shares, value).any()
    assert trainer.loggers[0].rows == [
        (step, {f"online/{name}": value for name, value in callback.values[step].items()}) for step in (0, 7)
    ]
    first, second = capsys.readouterr().out.splitlines()
    assert "scenes_shape (synthetic), 30 pictures: k-NN 100.0%" in first
    assert "step 7" in second
    value = callback.values[7]["knn_top1"]
    low, high = wilson(value, 30)
    assert f"k-NN {value:.1f}% (95%: {low:.1f} to {high:.1f}; 100.0 at step 0)" in second


def test_training_is_left_as_it_was(trainer, build):
    encoder = Colours().train()
    encoder.scale.grad = torch.tensor(3.0)
    callback, module = build(encoder)
    encoder.noise.eval()  # a part that somebody has put into evaluation mode stays so
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)

    def state():
        own = [encoder.training, encoder.noise.training, encoder.scale.requires_grad, encoder.frozen.requires_grad]
        return own, encoder.scale.item(), encoder.scale.grad.item(), encoder.frozen.grad, torch.is_grad_enabled()

    def draws():
        return torch.rand(1).item(), np.random.rand(), random.random()

    before, expected = state(), draws()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    callback.evaluate(trainer, module)
    assert state() == before
    assert draws() == expected


def test_reading_pictures_draws_nothing(build):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build(Colours())
    assert torch.equal(torch.rand(1), expected)


class Noise(nn.Module):
    """Tokens that depend on the picture and show nothing of its class."""

    embed_dim, patch_embed = 8, SimpleNamespace(num_patches=4)

    def forward_features(self, image_BCHW):
        seeds = image_BCHW.abs().sum((1, 2, 3)).mul(1000).long().tolist()
        return torch.stack([torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def test_the_value_is_a_function_of_weights_and_seed(trainer, build):
    values = []
    for seed, drawn in ((0, 1), (0, 2), (1, 2)):
        callback, module = build(Noise(), seed=seed, num_test=300, name=f"seed {seed}, drawn {drawn}")
        torch.manual_seed(drawn)
        callback.evaluate(trainer, module)
        values.append(callback.values[0]["probe_top1"])
    assert values[0] == values[1] != values[2]
    assert all(20 < value < 50 for value in values), "noise must score near chance"


def test_the_encoder_runs_in_the_run_s_precision_and_the_probe_does_not(trainer, build):
    callback, module = build(Colours())
    trainer.precision_plugin.forward_context = lambda: torch.autocast("cpu", torch.bfloat16)
    callback.evaluate(trainer, module)
    assert module.encoder.autocast == [True] * (12 + 4)  # batches of 8 of 90 and of 30


def test_knn_equals_a_restatement():
    """Cosine similarity, the nearest k, votes of exp(similarity / 0.07), in plain numpy."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(4, 6))
    label, test_label = rng.integers(0, 4, 120), rng.integers(0, 4, 80)
    train = rng.normal(size=(120, 3, 6)) * 3 + centre[label][:, None]
    test = rng.normal(size=(80, 3, 6)) * 3 + centre[test_label][:, None]
    right = 0
    for tokens, wanted in zip(test, test_label, strict=True):
        query, votes = tokens.mean(0), np.zeros(4)
        similarity = np.array([query @ t.mean(0) / np.linalg.norm(query) / np.linalg.norm(t.mean(0)) for t in train])
        for index in np.argsort(-similarity)[:7]:
            votes[label[index]] += np.exp(similarity[index] / 0.07)
        right += votes.argmax() == wanted
    parts = [Encoded(torch.tensor(x).float(), torch.tensor(y).long()) for x, y in ((train, label), (test, test_label))]
    assert 40 < right / 80 * 100 < 95, "neither chance nor all: the comparison would say nothing"
    assert knn_top1(*parts, num_classes=4, k=7) == pytest.approx(100 * right / 80)


def scattered(count, *, seed):
    """One of five tokens shows the class, strongly; the mean of the tokens shows it weakly."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 4
    tokens = rng.normal(size=(count, 5, 8))
    tokens[np.arange(count), rng.integers(0, 5, count), label] += 5
    return Encoded(torch.tensor(tokens).float(), torch.tensor(label))


def test_the_probe_looks_for_the_token_that_shows_the_class():
    torch.manual_seed(0)
    train, test = scattered(400, seed=0), scattered(200, seed=1)
    assert probe_top1(train, test, num_classes=4, config=PROBE, seed=0) > 85


def test_the_setting_is_chosen_on_held_out_training_pictures_and_never_on_the_test_part():
    """A rate of nothing and one that learns; test labels turned by one make the learner the worst: it is chosen all the same."""
    config = ProbeConfig(
        lrs=(1e-9, 1e-2), weight_decays=(0.0,), epochs=10, batch_size=32, held_out=0.2, min_lr=0.0, head=PROBE.head
    )
    train, test = scattered(400, seed=0), scattered(200, seed=1)
    turned = Encoded(test.tokens_STD, (test.label_S + 1) % 4)
    scores = []
    for part in (test, turned):
        torch.manual_seed(0)
        scores.append(probe_top1(train, part, num_classes=4, config=config, seed=0))
    assert scores[0] > 85
    assert scores[1] < 10


def test_tokens_are_those_of_an_evaluation_of_the_same_encoder(tiny_encoder, drawn_set):
    block = tiny_encoder()
    part = read_part(drawn_set(10), img_size=16)
    expected = block(block.preprocess([drawn_set(10).load(index) for index in range(10)]))
    encoded = encode_part(block.vit, part, spec=ImageSpec(16), batch_size=4, device=torch.device("cpu"))
    torch.testing.assert_close(encoded.tokens_STD, expected.tokens_BND, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoded.summaries(), expected.summary(), atol=1e-5, rtol=1e-5)


def test_compiled_blocks_are_not_compiled_again():
    graphs = []

    def backend(graph, inputs):
        graphs.append(1)
        return graph.forward

    layer = nn.Linear(3, 3)
    layer.compile(backend=backend)
    with evaluating(layer):
        expected = layer(torch.ones(2, 3))
    assert not graphs
    assert torch.equal(layer(torch.ones(2, 3)).detach(), expected)
    assert graphs == [1], "training goes on compiled"


def test_unreadable_pictures_are_left_out_and_said(trainer, build, capsys):
    order = draw_rng(0, "online", 0).permutation(120)  # the first 90 are learned from, the rest is scored
    callback, module = build(Colours(), bad=(int(order[0]), int(order[90])))
    assert "1 unreadable train pictures of scenes_shape are left out" in capsys.readouterr().out
    callback.evaluate(trainer, module)
    assert "29 pictures" in capsys.readouterr().out
    assert callback.values[0]["knn_top1"] == 100
    assert callback.values[0]["probe_top1"] >= 90


def test_when_it_is_due(trainer, build):
    """Two micro-batches a step, as Lightning counts them: the number of steps is the same after both."""
    callback, module = build(Colours())
    seen = []
    callback.evaluate = lambda trainer, module: (
        seen.append(trainer.global_step) or setattr(callback, "_evaluated_at", trainer.global_step)
    )
    for step in range(5):
        trainer.global_step = step
        for micro in (0, 1):
            callback.on_train_batch_start(trainer, module, None, 0)
            trainer.global_step = step + micro
            callback.on_train_batch_end(trainer, module, None, None, 0)
    callback.on_train_end(trainer, module)
    assert seen == [0, 2, 4, 5]


@pytest.mark.parametrize("first", [True, False], ids=["before Throughput", "after Throughput"])
def test_images_per_second_know_nothing_of_it(trainer, build, monkeypatch, first):
    """Steps of 0.5 s at 8 images are 16 images/s, whatever the 100 s of an evaluation in front of or behind Throughput."""
    now = [0.0]
    throughput = Throughput()
    throughput.meter._clock = lambda: now[0]
    callback, module = build(Colours())
    trainer.callbacks[:] = [callback, throughput] if first else [throughput, callback]
    trainer.world_size, module.log = 1, lambda *args, **options: None

    def evaluate(trainer, module):
        now[0] += 100
        callback._evaluated_at = trainer.global_step

    monkeypatch.setattr(callback, "evaluate", evaluate)
    throughput.on_train_start()
    for step in range(6):
        callback.on_train_batch_start(trainer, module, None, step)
        now[0] += 0.5
        trainer.global_step = step + 1
        for each in trainer.callbacks:
            each.on_train_batch_end(trainer, module, None, range(8), step)
    assert now[0] == 403
    assert throughput.meter.mean_imgs_per_s == pytest.approx(16)
    assert throughput.meter.imgs_per_s == pytest.approx(16)


def test_a_process_without_pictures_takes_part_where_weights_are_in_shards(trainer, build, monkeypatch):
    callback, module = build(Colours())
    trainer.is_global_zero = False
    callback.evaluate(trainer, module)
    assert not module.encoder.autocast, "it has all weights: only the first process evaluates"
    monkeypatch.setattr(online, "is_sharded", lambda encoder: True)
    callback.evaluate(trainer, module)
    assert len(module.encoder.autocast) == 12 + 4, "as many passes as the first process makes"
    assert not callback.values


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every_n_steps": 0}, "every_n_steps=0 must be at least 1"),
        ({"num_train": 1}, "num_train=1 must be at least 2"),
        ({"num_test": 0}, "num_test=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"knn_k": 0}, "knn_k=0"),
        ({"seed": -1}, "seed=-1"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"num_train": 10, "knn_k": 11}, "knn_k=11 is more than the num_train=10"),
        ({"dataset": "scenes_shap"}, "scenes_shape"),
        ({"data": "somewhere"}, "scenes_shape is generated"),
    ],
)
def test_what_cannot_be_meant_is_one_line(options, words):
    with pytest.raises(UserError, match=r"^online: ") as error:
        OnlineProbe(**options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_does_not_fit_the_encoder_is_one_line(build, monkeypatch):
    with pytest.raises(UserError, match=r"^online: num_heads=3 must divide the encoder's width 8"):
        build(Colours(), num_heads=3)
    monkeypatch.setattr(online, "MAX_TOKEN_BYTES", 120 * 16 * 8 * 4 - 1)
    with pytest.raises(UserError, match=r"tokens of num_train=90 and num_test=30 .* lower num_train"):
        build(Colours(), name="b")
    monkeypatch.setattr(online, "MAX_PICTURE_BYTES", 120 * 3 * 16 * 16 - 1)
    with pytest.raises(UserError, match=r"num_train=90 and num_test=30 pictures of 16 pixels .* lower num_train"):
        build(Colours(), name="c")


def test_too_many_pictures_at_the_real_bound(trainer):
    """(700,000 + 1,000) x 3 x 32 x 32 bytes are just over 2 GiB."""
    trainer.datamodule.image = ImageSpec(32)
    callback = OnlineProbe(num_train=700_000)
    with pytest.raises(UserError, match=r"num_train=700000 .* 2,054 MiB, more than 2,048 MiB"):
        callback.setup(trainer, None, "fit")


@pytest.fixture
def folders(tmp_path):
    """A data set of class folders, 6 training and 4 test pictures of each of two classes, and its config."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        for label in ("dark", "light"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 90, (20, 20, 3)) + 160 * (label == "light")
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    fields = {"name": "mine", "kind": "folders", "train": "train", "test": "test", "num_train": None, "num_test": None}
    fields |= {"num_classes": 2, "split_rule": "folders", "source": "made here", "license": "none"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(fields | {"path": str(tmp_path / "data")}))
    return path


def test_a_set_of_the_user_s_own(trainer, folders, capsys):
    callback = OnlineProbe(dataset=str(folders), num_train=8, num_test=4, knn_k=3, num_heads=2, seed=1)
    module = SimpleNamespace(encoder=Colours(), device=torch.device("cpu"))
    callback.setup(trainer, module, "fit")
    train, test = callback._parts["train"], callback._parts["test"]
    assert train.image_SCHW.shape == (8, 3, 16, 16)
    assert test.image_SCHW.shape == (4, 3, 16, 16)
    light_S = train.image_SCHW.float().mean((1, 2, 3)) > 128
    assert torch.equal(light_S.long(), train.label_S)
    both = torch.cat([train.image_SCHW, test.image_SCHW]).flatten(1)
    assert len(torch.unique(both, dim=0)) == 12, "no picture is in both"
    assert 0 < train.label_S.sum() < 8, "drawn from the whole set, not its first class"
    callback.evaluate(trainer, module)
    assert "mine, 4 pictures: k-NN 100.0%" in capsys.readouterr().out  # not called synthetic
    callback.teardown(trainer, module, "fit")
    assert not callback._parts


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"num_train": 13, "knn_k": 1},
            "num_train=13 and num_test=1000 are more than the 12 training pictures of mine",
        ),
        ({"num_train": 10, "num_test": 3}, "num_train=10 and num_test=3 are more than the 12 training pictures"),
        ({"num_train": 2, "num_test": 8, "knn_k": 1, "seed": 0}, "no class has two pictures"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_what_the_data_does_not_have_is_one_line(trainer, folders, options, words):
    callback = OnlineProbe(dataset=str(folders), **{"knn_k": 3} | options)
    with pytest.raises(UserError, match=r"^online: ") as error:
        callback.setup(trainer, None, "fit")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_scenes_beyond_the_config_s_number_are_refused(trainer):
    callback = OnlineProbe(num_train=20_001)
    with pytest.raises(
        UserError, match="num_train=20001 and num_test=1000 are more than the 20,000 training pictures of scenes_shape"
    ):
        callback.setup(trainer, None, "fit")


def test_an_error_of_the_first_process_is_everybody_s(trainer):
    trainer.is_global_zero = False
    trainer.strategy.broadcast = lambda value: ("online: no such folder", (0, 0))
    with pytest.raises(UserError, match="no such folder"):
        OnlineProbe().setup(trainer, None, "fit")


def test_two_of_one_name_are_refused(trainer, build):
    build(Colours())
    with pytest.raises(UserError, match="online: 2 callbacks have this name"):
        build(Colours(), seed=1)


def test_validation_on_its_own_reads_nothing(trainer):
    callback = OnlineProbe()
    callback.setup(trainer, None, "validate")
    assert not callback._parts


def test_parts_count_their_pictures():
    assert len(Part(torch.zeros(3, 3, 2, 2), torch.zeros(3))) == 3
