"""k-NN and a small attentive probe while an encoder is pre-trained: a callback that leaves the training as it is.

    python -m pretrain fit --config FILE --trainer.callbacks+=evals.online.OnlineProbe --trainer.callbacks.every_n_steps=500

Shape letters: S pictures of a part, B batch, C channels, H/W pixels, T tokens, D width, G settings.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from rich.console import Console
from torch import Tensor, nn

from evals.data.config import Split, build_set, load_dataset_config
from evals.data.labelled import LabelledSet, Subset
from evals.data.loading import set_loader
from evals.data.split import hold_out
from evals.encoder import Features
from evals.neighbours import accuracy, knn_votes
from evals.probe.config import ProbeConfig
from evals.probe.feeding import EpochBatches
from evals.probe.heads import HeadConfig
from evals.probe.module import ProbeModule
from evals.probe.scored import ProbeBatch
from evals.statistics import wilson
from evals.transforms import ImageTransform
from pretrain.callbacks.throughput import Throughput, restart_clock
from pretrain.data.terminal import progress_bar
from pretrain.memory import show_bytes
from pretrain.models.sharding import is_sharded
from pretrain.models.vision import num_patches
from pretrain.rng import draw_rng
from pretrain.types import ImageSpec, UserError

#: Bounds of what the first process keeps: all pictures for the whole run, all tokens during an evaluation.
MAX_PICTURE_BYTES, MAX_TOKEN_BYTES = 2 * 2**30, 8 * 2**30
#: Share of the training pictures that the probe's rate is chosen on, and pictures of a step of the probe.
HELD_OUT, PROBE_BATCH = 0.2, 128
#: Ours: larger than the published rates, for tens of steps where those have thousands.
PROBE_LRS = (1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Part:
    """Labelled pictures, decoded: uint8 [S, 3, H, W], int64 [S], and how many that were asked for could not be read."""

    image_SCHW: Tensor
    label_S: Tensor
    num_unreadable: int = 0

    def __len__(self) -> int:
        return len(self.label_S)


@dataclass(frozen=True)
class Encoded:
    """Tokens of pictures, float32 [S, T, D], and their classes, int64 [S]; on the CPU."""

    tokens_STD: Tensor
    label_S: Tensor

    def summaries(self) -> Tensor:
        """One vector a picture, as evaluations of an encoder without a summary of its own have it: [S, D]."""
        return Features(self.tokens_STD, self.tokens_STD[:, :0]).summary()


def read_part(dataset: LabelledSet, *, img_size: int, num_workers: int = 0) -> Part:
    """Decode all pictures of a set, resized and cut out as evaluations do.

    Raises:
        UserError: too many of them cannot be read.
    """
    transform = ImageTransform(ImageSpec(img_size))
    loader = set_loader(dataset, transform, batch_size=64, num_workers=num_workers)
    image_SCHW = torch.empty(len(dataset), 3, img_size, img_size, dtype=torch.uint8)
    label_S = torch.empty(len(dataset), dtype=torch.long)
    count = 0
    with progress_bar() as bar:
        task = bar.add_task(f"read {dataset.name} {dataset.split}", total=len(dataset))
        for batch in loader:
            if len(batch):
                rows = slice(count, count + len(batch))
                image_SCHW[rows], label_S[rows] = batch.image_BCHW, batch.label_B
            count += len(batch)
            bar.advance(task, len(batch) + len(batch.faults))
    return Part(image_SCHW[:count], label_S[:count], len(loader.faults))


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients and compilation; each submodule gets its own mode back."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        # compiled blocks would be compiled once more, for a minute, for a few seconds of use
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, training in modes:
            module.training = training


def encode_part(encoder: nn.Module, part: Part, *, spec: ImageSpec, batch_size: int, device: torch.device) -> Encoded:
    """Tokens under full attention."""
    tokens_STD: Tensor | None = None
    for start in range(0, len(part), batch_size):
        image_BCHW = part.image_SCHW[start : start + batch_size].to(device)
        # not through a BlockEncoder: it would switch off the gradients and the fixed size of the model that is trained
        tokens_BTD = encoder.forward_features(spec.normalise(image_BCHW)).float()
        if tokens_STD is None:
            tokens_STD = torch.empty(len(part), *tokens_BTD.shape[1:])
        tokens_STD[start : start + batch_size] = tokens_BTD.cpu()
    return Encoded(tokens_STD, part.label_S)


def knn_top1(train: Encoded, test: Encoded, *, num_classes: int, k: int) -> float:
    """Percent of test pictures that the k nearest training pictures vote for right; k is given, not chosen."""
    votes = knn_votes(test.summaries(), train.summaries(), train.label_S, num_classes=num_classes, ks=[k])
    return accuracy(votes[k], test.label_S)


def probe_top1(
    train: Encoded,
    test: Encoded,
    *,
    num_classes: int,
    config: ProbeConfig,
    seed: int,
    device: torch.device | str = "cpu",
) -> float:
    """Percent of test pictures that an attentive probe gets right: the setting that is best on held-out training pictures.

    The grid's heads, optimiser, schedule and clipping are the offline probe's, in a loop without a trainer: one is running.
    The heads' first weights are drawn from torch's generator.
    """
    fit_N, held_N = hold_out(train.label_S.numpy(), share=config.held_out, seed=seed)
    order = EpochBatches(fit_N, batch_size=min(config.batch_size, len(fit_N)), seed=seed)
    width = train.tokens_STD.shape[-1]
    module = ProbeModule(config, embed_dim=width, num_classes=num_classes, steps_per_epoch=len(order)).to(device)
    built = module.configure_optimizers()
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    for epoch in range(config.epochs):
        order.set_epoch(epoch)
        for batch in order:
            index_B = torch.tensor([index for _, index in batch])
            rows = ProbeBatch(train.tokens_STD[index_B], None, train.label_S[index_B], index_B).to(device)
            optimizer.zero_grad()
            module.losses(rows).sum().backward()
            module.configure_gradient_clipping(optimizer)
            optimizer.step()
            scheduler.step()
    module.eval()
    held_B = torch.from_numpy(held_N)
    held_out_G = _accuracies(module, train.tokens_STD[held_B], train.label_S[held_B], device=device)
    chosen = int(np.argmax(held_out_G))  # the first of equals
    return _accuracies(module, test.tokens_STD, test.label_S, device=device)[chosen]


@torch.no_grad()
def _accuracies(module: ProbeModule, tokens_STD: Tensor, label_S: Tensor, *, device: torch.device | str) -> list[float]:
    """Accuracy in percent of each setting."""
    logits = [module.grid(part_BTD.to(device)).cpu() for part_BTD in tokens_STD.split(PROBE_BATCH)]
    return [accuracy(logits_SC, label_S) for logits_SC in torch.cat(logits, dim=1)]


class OnlineProbe(Callback):
    """Every so many steps, and at the end: k-NN and a small attentive probe on the frozen encoder, under full attention.

    Logs NAME/knn_top1 and NAME/probe_top1 in percent of the test pictures, prints them beside those of step 0, and keeps them
    with the checkpoint. Training goes on as if nothing had been: random numbers, modes and gradients are left alone, and the
    time does not count in images per second. The first process evaluates; the others wait for it, or pass blank pictures
    along where weights are in shards. Both the pictures that are learned from and those that are scored are of the data set's
    training split, and the probe's rate is chosen on a third part: checkpoints may be picked by these numbers.

    Args:
        every_n_steps: optimiser steps between evaluations.
        dataset: name in configs/evals/datasets, or a .yaml.
        data: the data's place, instead of the config's.
        num_train: pictures to learn from, drawn from the training split by `seed`.
        num_test: pictures that are scored, others of the training split.
        knn_k: neighbours that vote.
        epochs: of the probe.
        seed: of the pictures, the held-out part, the probe's weights and order.
        at_start: evaluate before the first step too, for comparison.
        num_heads: of the probe; must divide the encoder's width.
        num_workers: processes that read pictures, once.
        allow_sizes: take the data set whatever its number of pictures.
        name: of the metrics; two of these callbacks need two names.

    Raises:
        UserError: a number that cannot be meant, an unknown data set; from `fit`, before the first step: data that is
            missing, has fewer pictures or is too large, or a head that does not fit the encoder.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        dataset: str = "scenes_shape",
        data: str | None = None,
        num_train: int = 2000,
        num_test: int = 1000,
        knn_k: int = 20,
        epochs: int = 10,
        seed: int = 0,
        at_start: bool = True,
        num_heads: int = 8,
        num_workers: int = 0,
        allow_sizes: bool = False,
        name: str = "online",
    ) -> None:
        for field, value, least in (
            ("every_n_steps", every_n_steps, 1),
            ("num_train", num_train, 2),
            ("num_test", num_test, 1),
            ("knn_k", knn_k, 1),
            ("epochs", epochs, 1),
            ("seed", seed, 0),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise UserError(f"{name}: {field}={value} must be at least {least}")
        if knn_k > num_train:
            raise UserError(f"{name}: knn_k={knn_k} is more than the num_train={num_train} pictures there are to vote")
        self.every_n_steps, self.at_start, self.name = every_n_steps, at_start, name
        self.num_train, self.num_test, self.knn_k, self.seed = num_train, num_test, knn_k, seed
        self.num_workers = num_workers
        try:
            self.dataset = load_dataset_config(dataset, path=data, allow_sizes=allow_sizes)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        self.probe = ProbeConfig(
            lrs=PROBE_LRS,
            weight_decays=(0.05,),
            warmup_epochs=0,
            epochs=epochs,
            batch_size=PROBE_BATCH,
            held_out=HELD_OUT,
            head=HeadConfig(num_heads=num_heads),
        )
        self._protocol = json.dumps(
            [name, self.dataset.name, data, num_train, num_test, knn_k, epochs, seed, num_heads]
        )
        #: both values by step, on the first process
        self.values: dict[int, dict[str, float]] = {}
        self._evaluated_at, self._counts = -1, (0, 0)
        self._parts: dict[Split, Part] = {}
        self._num_classes = 0

    @property
    def state_key(self) -> str:
        """Under other settings a resumed run starts its values anew: they could not be compared."""
        return f"OnlineProbe{self._protocol}"

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Read the pictures, once for the run, on the first process; what is wrong with them is every process's error."""
        if stage != "fit":
            return
        same = [
            callback
            for callback in trainer.callbacks
            if isinstance(callback, OnlineProbe) and callback.name == self.name
        ]
        if len(same) > 1:
            raise UserError(f"{self.name}: {len(same)} callbacks have this name; give each a name of its own")
        error = None
        if trainer.is_global_zero:
            try:
                with isolate_rng():  # a loader draws a seed for its workers
                    self._read(trainer.datamodule.image.img_size)
            except UserError as found:
                error = f"{self.name}: {found}"
        error, self._counts = trainer.strategy.broadcast((error, self._counts))
        if error is not None:
            raise UserError(error)

    def _read(self, img_size: int) -> None:
        needed = (self.num_train + self.num_test) * 3 * img_size**2
        if needed > MAX_PICTURE_BYTES:
            raise UserError(
                f"num_train={self.num_train} and num_test={self.num_test} pictures of {img_size} pixels take "
                f"{show_bytes(needed)}, more than {show_bytes(MAX_PICTURE_BYTES)}: lower num_train"
            )
        for part, chosen in self._choose(img_size=img_size).items():
            self._num_classes = len(chosen.classes)
            self._parts[part] = read_part(chosen, img_size=img_size, num_workers=self.num_workers)
            if not len(self._parts[part]):
                raise UserError(f"num_{part}: none of the pictures of {self.dataset.name} can be read")
            if left_out := self._parts[part].num_unreadable:
                _say(f"{self.name}: {left_out} unreadable {part} pictures of {self.dataset.name} are left out")
        train = self._parts["train"]
        if not len(hold_out(train.label_S.numpy(), share=HELD_OUT, seed=self.seed)[1]):
            raise UserError(f"num_train={self.num_train}: no class has two pictures, one to be held out; give more")
        self._counts = (len(train), len(self._parts["test"]))

    def _choose(self, *, img_size: int) -> dict[Split, LabelledSet]:
        """Both parts are of the training split: the test split is looked at once, when all is done."""
        config, wanted = self.dataset, self.num_train + self.num_test
        if config.kind == "scenes":  # drawn on demand: only as many as are wanted
            there = config.num_train
            config = replace(config, num_train=min(wanted, there))
        whole = build_set(config, "train", img_size=img_size)
        if config.kind != "scenes":
            there = len(whole)
        if wanted > there:
            raise UserError(
                f"num_train={self.num_train} and num_test={self.num_test} are more than the {there:,} training pictures of "
                f"{config.name}, which both are taken from; give fewer"
            )
        order_N = draw_rng(self.seed, "online", 0).permutation(len(whole))
        parts = {"train": order_N[: self.num_train], "test": order_N[self.num_train : wanted]}
        return {part: Subset(whole, np.sort(index_N)) for part, index_N in parts.items()}

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse what does not fit the encoder, which is built by now."""
        encoder = pl_module.encoder
        try:
            self.probe.head.check(encoder.embed_dim)
        except UserError as error:
            raise UserError(f"{self.name}: {str(error).removeprefix('head.')}") from error
        needed = sum(self._counts) * num_patches(encoder) * encoder.embed_dim * 4
        if needed > MAX_TOKEN_BYTES:
            raise UserError(
                f"{self.name}: tokens of num_train={self.num_train} and num_test={self.num_test} pictures take "
                f"{show_bytes(needed)}, more than {show_bytes(MAX_TOKEN_BYTES)}: lower num_train"
            )

    def _due(self, step: int) -> bool:
        return step % self.every_n_steps == 0 and step > self._evaluated_at and (step > 0 or self.at_start)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any
    ) -> None:
        """Before the first step (weights to start from are in place), and where a run stopped just in front of its turn."""
        if self._due(trainer.global_step):
            self._pause(trainer, pl_module)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any) -> None:
        """In front of the callbacks that save, so that a checkpoint of this step knows of the evaluation."""
        if trainer.global_step and self._due(trainer.global_step):
            self._pause(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.global_step > self._evaluated_at:
            self.evaluate(trainer, pl_module)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._parts = {}

    def _pause(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Evaluate; neither the step's time so far is lost to images per second, nor is the evaluation's counted."""
        for callback in trainer.callbacks:
            if isinstance(callback, Throughput):
                callback.meter.step(0)
        self.evaluate(trainer, pl_module)
        restart_clock(trainer)

    def evaluate(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Evaluate, log and print on the first process; where weights are in shards, the others pass blank pictures along."""
        started = time.perf_counter()
        self._evaluated_at = step = trainer.global_step
        encoder = pl_module.encoder
        if not trainer.is_global_zero and not is_sharded(encoder):
            return
        spec, device = trainer.datamodule.image, pl_module.device
        batch_size = trainer.datamodule.batch_size  # what fits with gradients fits without
        with isolate_rng(), evaluating(encoder), trainer.precision_plugin.forward_context():
            if not trainer.is_global_zero:
                blank_BCHW = torch.zeros(1, 3, spec.img_size, spec.img_size, device=device)
                for _ in range(sum(-(-count // batch_size) for count in self._counts)):
                    encoder.forward_features(blank_BCHW)
                return
            options = {"spec": spec, "batch_size": batch_size, "device": device}
            train, test = (encode_part(encoder, self._parts[split], **options) for split in ("train", "test"))
        with isolate_rng():
            torch.manual_seed(self.seed)
            knn = knn_top1(train, test, num_classes=self._num_classes, k=self.knn_k)
            options = {"config": self.probe, "seed": self.seed, "device": device}
            probe = probe_top1(train, test, num_classes=self._num_classes, **options)
        self.values[step] = {"knn_top1": knn, "probe_top1": probe}
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"{self.name}/{metric}": value for metric, value in self.values[step].items()}, step=step
            )
        _say(self._line(step, seconds=time.perf_counter() - started))

    def _line(self, step: int, *, seconds: float) -> str:
        """E.g. online, step 1,000: scenes_shape (synthetic), 1,000 pictures: k-NN 24.1% (95%: 21.6 to 26.8), ..."""
        n, first = self._counts[1], self.values.get(0) if step else None
        words = []
        for title, metric in (("k-NN", "knn_top1"), ("probe", "probe_top1")):
            value = self.values[step][metric]
            low, high = wilson(value, n)
            was = f"; {first[metric]:.1f} at step 0" if first else ""
            words.append(f"{title} {value:.1f}% (95%: {low:.1f} to {high:.1f}{was})")
        synthetic = " (synthetic)" if self.dataset.synthetic else ""
        return f"{self.name}, step {step:,}: {self.dataset.name}{synthetic}, {n:,} pictures: {', '.join(words)}; {seconds:.1f} s"

    def state_dict(self) -> dict[str, Any]:
        return {"evaluated_at": self._evaluated_at, "values": self.values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._evaluated_at, self.values = state_dict["evaluated_at"], state_dict["values"]


@rank_zero_only
def _say(line: str) -> None:
    Console().print(line, highlight=False, markup=False, soft_wrap=True)
