"""Shape letters as in evals/probe/module.py."""

import dataclasses
import math

import lightning
import numpy as np
import pytest
import torch

from evals.features import CachedFeatures
from evals.probe.config import ProbeConfig, Setting
from evals.probe.feeding import CachedRows, EpochBatches, batch_loader
from evals.probe.fit import Loaders, fit_probe
from evals.probe.heads import HeadConfig, load_head
from evals.probe.module import ProbeModule
from pretrain.types import UserError

CONFIG = ProbeConfig(head=HeadConfig(num_heads=2), epochs=4, batch_size=16)


def separable(count=160, *, classes=3, tokens=5, width=8, seed=0) -> CachedFeatures:
    """One token of each picture shows its class; which one is drawn, so that attention has something to find."""
    rng = np.random.default_rng(seed)
    label_S = rng.integers(0, classes, count)
    tokens_STD = 0.3 * rng.normal(size=(count, tokens, width)).astype(np.float32)
    tokens_STD[np.arange(count), rng.integers(0, tokens, count), label_S] += 3
    summary_SE = tokens_STD.mean(1)
    return CachedFeatures(tokens_STD, summary_SE, np.arange(count), label_S, None)


def build(config=CONFIG, *, steps_per_epoch=8, warmup_epochs=0, width=8, classes=3) -> ProbeModule:
    torch.manual_seed(0)
    return ProbeModule(
        config, embed_dim=width, num_classes=classes, steps_per_epoch=steps_per_epoch, warmup_epochs=warmup_epochs
    )


def loaders(features: CachedFeatures, config=CONFIG, *, seed=0, num_workers=0) -> Loaders:
    rows = CachedRows(features, summaries=config.head.kind == "linear")
    index = np.arange(len(features.label_S))
    return Loaders(
        batch_loader(rows, index[:128], batch_size=16, seed=seed, num_workers=num_workers),
        batch_loader(rows, index[128:144], batch_size=16),
        batch_loader(rows, index[144:], batch_size=16),
    )


class Losses(lightning.Callback):
    """Loss of each setting before every step, on the batch of that step."""

    def __init__(self):
        self.loss_G = []

    @torch.no_grad()
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        norm = pl_module.grid.norm
        state = {name: value.clone() for name, value in norm.state_dict().items()}
        self.loss_G.append(pl_module.losses(batch))
        norm.load_state_dict(state)


def train(module: ProbeModule, parts: Loaders, *, max_steps: int, tmp_path) -> list[torch.Tensor]:
    losses = Losses()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, parts.fit)
    return losses.loss_G


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_each_setting_gets_what_it_gets_alone(tmp_path, kind):
    """All 14 at once, then four of them alone: the same losses over 20 steps, the clipping at work."""
    head = HeadConfig(kind=kind, num_heads=2)
    config = dataclasses.replace(
        CONFIG, head=head, clip=0.05, lrs=tuple(20 * lr for lr in CONFIG.lrs), weight_decays=(0.05, 2.0)
    )
    features = separable()
    together = train(build(config), loaders(features, config), max_steps=20, tmp_path=tmp_path)
    assert len(together) == 20
    assert len(together[0]) == 14
    spread = together[-1].max() - together[-1].min()
    assert spread > 1e-3, "settings must differ, or the comparison says nothing"
    settings = config.settings()
    for number in (5, 8, 12, 13):
        setting = settings[number]
        alone = dataclasses.replace(config, lrs=(setting.lr,), weight_decays=(setting.weight_decay,))
        losses = train(build(alone), loaders(features, alone), max_steps=20, tmp_path=tmp_path)
        # two settings of one rate differ in their decay alone
        assert number % 2 or abs(together[-1][number] - together[-1][number + 1]) > 2e-4
        for step in range(20):
            assert losses[step][0] == pytest.approx(together[step][number].item(), abs=1e-4), (setting, step)


def test_rates_by_hand():
    """2 epochs of 4 steps, the first of them warm-up: 1e-6, then lines to the peak; a cosine from there to 1e-5."""
    config = dataclasses.replace(CONFIG, lrs=(1e-3,), weight_decays=(0.05, 0.1), epochs=2)
    module = build(config, steps_per_epoch=4, warmup_epochs=1)
    optimizer = module.configure_optimizers()["optimizer"]
    scheduler = module.configure_optimizers()["lr_scheduler"]["scheduler"]
    factors = [scheduler.lr_lambdas[0](step) for step in range(8)]
    warm = [1e-6 + (1e-3 - 1e-6) * step / 4 for step in range(4)]
    cosine = [1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * k / 3)) for k in range(4)]
    assert [1e-3 * factor for factor in factors] == pytest.approx(warm + cosine)
    # matrices are decayed, the query and the bias are not
    decays = [
        (group["weight_decay"], sorted(tuple(p.shape) for p in group["params"])) for group in optimizer.param_groups
    ]
    matrices, others = [(3, 8), (8, 8), (8, 8)], [(1, 8), (3,)]
    assert decays == [(0.05, matrices), (0.0, others), (0.1, matrices), (0.0, others)]


def test_clipping_is_by_setting():
    """A setting with a huge gradient is cut to 3, one with a small gradient is left alone."""
    module = build(dataclasses.replace(CONFIG, lrs=(1e-3, 1e-4), weight_decays=(0.1,)))
    for head, scale in zip(module.grid.heads, (100.0, 1e-3), strict=True):
        for parameter in head.parameters():
            parameter.grad = torch.full_like(parameter, scale)
    module.configure_gradient_clipping(None)
    norms = [torch.stack([p.grad.norm() for p in head.parameters()]).norm().item() for head in module.grid.heads]
    count = sum(p.numel() for p in module.grid.heads[0].parameters())
    assert norms == pytest.approx([3.0, 1e-3 * math.sqrt(count)], rel=1e-4)


def test_fit_choose_and_score(tmp_path):
    config = dataclasses.replace(CONFIG, lrs=(5e-5, 5e-2), weight_decays=(0.1,), epochs=12, min_lr=1e-5)
    module = build(config)
    outcome = fit_probe(
        module, loaders(separable()), tmp_path, classes=["a", "b", "c"], best_on_test=True, accelerator="cpu"
    )
    assert outcome.setting["lr"] == 5e-2, "the other rate learns nothing in this time"
    assert outcome.held_out[1] > outcome.held_out[0]
    assert outcome.scores.top1 == 100
    assert outcome.scores.best_on_test == 100
    assert outcome.scores.tested[:, 0].tolist() == list(range(144, 160))
    head = load_head(tmp_path / "head.safetensors")
    features = separable()
    tokens = features.tokens(np.arange(144, 160))
    assert head(tokens).argmax(1).tolist() == outcome.scores.tested[:, 2].tolist()
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "picture,label,predicted,in_top5"
    assert len(lines) == 17


def test_scores_by_hand(tmp_path):
    """A head that always says class 0: top1 is its share, per-class accuracy 100, 0, 0; top5 of three classes is all."""
    module = build(dataclasses.replace(CONFIG, lrs=(1e-4,), weight_decays=(0.0,)))
    with torch.no_grad():
        module.grid.heads[0].classifier.weight.zero_()
        module.grid.heads[0].classifier.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    module.chosen = 0
    features = separable()
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(module, loaders(features).test, verbose=False)
    labels = features.label_S[144:]
    assert module.scores.top1 == pytest.approx(100 * (labels == 0).mean(), abs=1e-4)
    assert module.scores.top5 == 100
    assert module.scores.per_class == pytest.approx([100.0, 0.0, 0.0])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_interrupted_fit_goes_on(tmp_path, num_workers):
    """4 epochs in one go, and 2, a stop, and the rest: the same head, bit for bit."""
    features = separable()

    def fit(folder, *, stop_after=None):
        module = build()
        if stop_after is not None:
            train_step = module.training_step

            def training_step(batch, batch_idx):
                if module.current_epoch == stop_after:
                    raise KeyboardInterrupt
                return train_step(batch, batch_idx)

            module.training_step = training_step
        fit_probe(
            module, loaders(features, num_workers=num_workers), folder, classes=["a", "b", "c"], accelerator="cpu"
        )

    fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "broken", stop_after=2)
    assert not (tmp_path / "broken" / "scores.json").exists()
    fit(tmp_path / "broken")
    whole, broken = (load_head(tmp_path / name / "head.safetensors").state_dict() for name in ("whole", "broken"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, broken[name]), name


def test_order_of_epochs():
    batches = EpochBatches(np.arange(100, 110), batch_size=4, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        found = list(batches)
        assert [len(batch) for batch in found] == [4, 4]
        assert {number for batch in found for number, _ in batch} == {epoch}
        epochs.append([index for batch in found for _, index in batch])
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]
    assert set(epochs[0]) <= set(range(100, 110))
    in_order = [index for batch in EpochBatches(np.arange(5), batch_size=2) for _, index in batch]
    assert in_order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lrs": ()}, r"probe.lrs and probe.weight_decays need at least one"),
        ({"lrs": (0.0,)}, r"probe.lrs=\[0.0\] must be positive"),
        ({"epochs": 0}, r"probe.epochs=0"),
        ({"held_out": 1.0}, r"probe.held_out=1.0"),
        ({"clip": 0.0}, r"probe.clip=0.0"),
        ({"min_lr": 1.0}, r"probe.min_lr=1.0 is above the smallest rate"),
    ],
)
def test_settings_that_cannot_be_meant(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **change).check()


@pytest.mark.parametrize(
    ("epochs", "given", "warmup"), [(100, None, 5), (20, None, 1), (10, None, 0), (10, 3, 3), (200, None, 5)]
)
def test_warmup_shrinks_with_the_epochs(epochs, given, warmup):
    assert dataclasses.replace(CONFIG, epochs=epochs, warmup_epochs=given).warmup(5) == warmup


def test_the_published_grid():
    """Table B1: seven rates times two decays."""
    settings = ProbeConfig().settings()
    assert len(settings) == 14
    assert settings[0] == Setting(5e-5, 0.05)
    assert {setting.lr for setting in settings} == {5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3}
    assert {setting.weight_decay for setting in settings} == {0.05, 0.1}
