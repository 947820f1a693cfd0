"""The DataModule: a source becomes batches for training and validation."""

import hashlib
import shutil
from collections.abc import Iterable
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from pretrain.data.faults import FaultLog
from pretrain.data.order import InOrder, Mixture, Order, ShardOrder, Shuffled
from pretrain.data.scene_source import SceneSource
from pretrain.data.source_config import AugmentConfig, SourceConfig, StorageConfig, training_configs
from pretrain.data.sources import Source
from pretrain.data.stream import Collate, Part, PositionBatches, SampleStream
from pretrain.data.tokenizers import CaptionTokenizer, build_tokenizer, load_tokenizer
from pretrain.data.transforms import EvalTransform, PlainTransform, TrainTransform, Transform
from pretrain.types import ImageSpec, ImageTextBatch, UserError

#: Validation draws nothing from the run's seed: all runs are judged on the same samples.
VAL_SEED = 0
#: Captions that a run's own BPE is trained on, at most.
TOKENIZER_CAPTIONS = 20_000


def validation_stream(source: Source, *, img_size: int, tokenizer: CaptionTokenizer, num_samples: int) -> SampleStream:
    """The first samples of a source, in its order, without augmentation; unusable ones are left out."""
    transform = PlainTransform(img_size) if isinstance(source, SceneSource) else EvalTransform(img_size)
    return SampleStream(
        [Part(source, transform, InOrder(len(source)))],
        Mixture([1.0], seed=VAL_SEED, num_lanes=1),
        tokenizer=tokenizer,
        seed=VAL_SEED,
        replaces=False,
        length=min(num_samples, len(source)),
    )


def global_batch_size(trainer: lightning.Trainer, batch_size: int) -> int:
    """Samples of one optimiser step, over devices and micro-batches, where a device's micro-batch holds `batch_size`."""
    return batch_size * trainer.world_size * trainer.accumulate_grad_batches


class ImageTextData(lightning.LightningDataModule):
    """Captioned pictures for training and validation.

    Args:
        train: training source; give this or `mixture`.
        mixture: several training sources by name, each with its weight.
        val: validation source; scenes' validation split where training is on scenes alone and this is not given.
        image: picture size and statistics (taken from the encoder).
        batch_size: pictures of a step on one device.
        num_workers: loader processes on one device; 0 loads in the training process.
        tokenizer: "bpe" (trained on this run's captions), "clip", or a Hugging Face tokenizer's name or folder.
        vocab_size: of the "bpe" tokenizer.
        num_val: validation samples.
        augment: crops and flips of photographs.
        max_fault_share: most samples of the last 10,000 that may be unusable.
        num_lanes: streams that the samples are dealt to (see :mod:`pretrain.data.order`); a multiple of (workers over all
            devices) x (batch_size / 16) lets each worker read its shards from front to back.
        shuffle_window: samples of a lane that are shuffled among each other.
        index_cache: folder of the shards' indices; ~/.cache/aimv2_suite/shards where not given.
        copies_gib: bound in GiB of the folder (`copies`, in `index_cache`) that shards by URL are copied to.
        seed: decides the order and every draw.
    """

    def __init__(
        self,
        train: SourceConfig | None = None,
        val: SourceConfig | None = None,
        *,
        image: ImageSpec,
        mixture: dict[str, SourceConfig] | None = None,
        batch_size: int = 64,
        num_workers: int = 1,
        tokenizer: str = "bpe",
        vocab_size: int = 1024,
        num_val: int = 256,
        augment: AugmentConfig | None = None,
        max_fault_share: float = 0.05,
        num_lanes: int = 64,
        shuffle_window: int = 1024,
        index_cache: str | None = None,
        copies_gib: float = 64.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("num_val", num_val, 1),
            ("num_lanes", num_lanes, 1),
            ("shuffle_window", shuffle_window, 1),
            ("copies_gib", copies_gib, 0),
        ):
            if value < least:
                raise UserError(f"data.{name}={value} must be at least {least}")
        self.train_configs = training_configs(train, mixture)
        self.val_config = val or next(iter(self.train_configs.values()))
        if val is None and (mixture or self.val_config.kind != "scenes"):
            what = "data.mixture" if mixture else f"data.train.kind={self.val_config.kind}"
            raise UserError(f"data.val is needed with {what}: name a source of held-out pictures")
        self.image, self.batch_size, self.num_workers, self.seed = image, batch_size, num_workers, seed
        self.tokenizer_name, self.vocab_size, self.num_val = tokenizer, vocab_size, num_val
        self.num_lanes, self.shuffle_window = num_lanes, shuffle_window
        self.storage = StorageConfig(None if index_cache is None else Path(index_cache).expanduser(), copies_gib)
        self.augment = augment or AugmentConfig()
        self.fault_log = FaultLog(bound=max_fault_share)
        self.tokenizer: CaptionTokenizer | None = None
        #: set for a run that goes on from a checkpoint (Lightning's trainer does not know it yet when data are prepared)
        self.keeps_tokenizer = False
        self._train_sources: dict[str, Source] | None = None
        self._val_faults: set[str] = set()
        self.train_stream: SampleStream | None = None
        self.val_stream: SampleStream | None = None

    def train_sources(self) -> dict[str, Source]:
        """The training sources by name; "" is the name of the only one."""
        if self._train_sources is None:
            self._train_sources = {}
            for name, config in self.train_configs.items():
                field = f"mixture.{name}" if name else "train"
                source = config.build(
                    field, seed=self.seed, split="train", img_size=self.image.img_size, storage=self.storage
                )
                self.fault_log.record(0, source.faults)
                self._train_sources[name] = source
        return self._train_sources

    @property
    def tokenizer_folder(self) -> Path:
        return Path(self.trainer.default_root_dir) / "tokenizer"

    def prepare_data(self) -> None:
        """Build the tokenizer and keep it with the run; a resumed run finds it there."""
        folder = self.tokenizer_folder
        if self.keeps_tokenizer and folder.exists():
            return
        beside = folder.with_name(".tokenizer.tmp")
        for old in (beside, folder):
            shutil.rmtree(old, ignore_errors=True)
        self._build_tokenizer().save(beside)
        beside.rename(folder)

    def _build_tokenizer(self) -> CaptionTokenizer:
        def captions() -> Iterable[str]:
            sources = self.train_sources().values()
            return chain.from_iterable(source.iter_captions(TOKENIZER_CAPTIONS // len(sources)) for source in sources)

        return build_tokenizer(self.tokenizer_name, captions, self.vocab_size)

    def _part(self, name: str, source: Source) -> Part:
        scenes = isinstance(source, SceneSource)
        if scenes:  # they never repeat unless their number is limited: there is nothing to shuffle
            order: Order = InOrder(len(source))
        elif source.shard_counts is None:
            order = Shuffled(len(source), seed=self.seed)
        else:
            order = ShardOrder(
                source.shard_counts,
                seed=self.seed,
                num_lanes=self.num_lanes,
                window=self.shuffle_window,
                max_lanes=source.max_lanes,
            )
        size, augment = self.image.img_size, self.augment
        if scenes:
            transform: Transform = PlainTransform(size)
        else:
            transform = TrainTransform(size, scale=augment.scale, ratio=augment.ratio, flip=augment.flip)
            source.spare = transform.spare if augment.reduced_decoding else None
        return Part(source, transform, order, name, ahead=2 * self.shuffle_window)

    def setup(self, stage: str) -> None:
        if self.val_stream is not None:  # validation after the last step: all is there
            return
        self.tokenizer = load_tokenizer(self.tokenizer_folder)
        weights = [config.weight for config in self.train_configs.values()]
        self.train_stream = SampleStream(
            [self._part(name, source) for name, source in self.train_sources().items()],
            Mixture(weights, seed=self.seed, num_lanes=self.num_lanes),
            tokenizer=self.tokenizer,
            seed=self.seed,
            replaces=True,
            length=2**62,
        )
        held_out = self.val_config.build(
            "val", seed=VAL_SEED, split="val", img_size=self.image.img_size, storage=self.storage
        )
        self.fault_log.record(0, held_out.faults)
        self.val_stream = validation_stream(
            held_out, img_size=self.image.img_size, tokenizer=self.tokenizer, num_samples=self.num_val
        )

    def _loader(self, stream: SampleStream, batches: PositionBatches) -> DataLoader:
        return DataLoader(
            stream,
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=Collate(stream.seed, self.tokenizer.pad_id),
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if self.num_workers else None,
        )

    def train_dataloader(self) -> DataLoader:
        """Batches of the whole run; a resumed run's start from its step."""
        trainer = self.trainer
        if trainer.max_steps < 1:
            raise UserError("data: the run has no end; give trainer.max_steps or max_samples")
        accumulate = trainer.accumulate_grad_batches
        return self._loader(
            self.train_stream,
            PositionBatches(
                batch_size=self.batch_size,
                num_batches=trainer.max_steps * accumulate,
                start_batch=trainer.global_step * accumulate,
                rank=trainer.global_rank,
                world_size=trainer.world_size,
            ),
        )

    def val_dataloader(self) -> DataLoader:
        world_size = self.trainer.world_size
        samples = len(self.val_stream)
        return self._loader(
            self.val_stream,
            PositionBatches(
                batch_size=self.batch_size,
                num_batches=-(-samples // (self.batch_size * world_size)),
                rank=self.trainer.global_rank,
                world_size=world_size,
                num_samples=samples,
            ),
        )

    def normalise(self, batch: ImageTextBatch) -> ImageTextBatch:
        """Bytes to the encoder's floats, on the batch's device."""
        batch.image_BCHW = self.image.normalise(batch.image_BCHW)
        return batch

    def on_before_batch_transfer(self, batch: ImageTextBatch, dataloader_idx: int) -> ImageTextBatch:
        if self.trainer.training:
            self.fault_log.record(batch.attempts, batch.faults)
        else:  # validation comes again and again: each of its faults counts once, and none in the window
            new = [fault for fault in batch.faults if fault.key not in self._val_faults]
            self._val_faults |= {fault.key for fault in new}
            self.fault_log.record(0, new)
        return batch

    def on_after_batch_transfer(self, batch: ImageTextBatch, dataloader_idx: int) -> ImageTextBatch:
        return self.normalise(batch)

    def state_dict(self) -> dict[str, Any]:
        return {"faults": self.fault_log.state_dict(), "run": self._identity()}

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share: another tokenizer, seed or batch would give the steps other samples."""
        files = sorted(path for path in self.tokenizer_folder.rglob("*") if path.is_file())
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        global_batch = global_batch_size(self.trainer, self.batch_size)
        return {
            "seed": self.seed,
            "batch size over devices and accumulation": global_batch,
            "tokenizer": digest[:16],
            "data (sources, their files and sizes, weights, lanes and window)": self._data_digest,
        }

    @cached_property
    def _data_digest(self) -> str:
        """What decides the order: other shards, weights or lanes would give the steps other samples.

        Taken once: a checkpoint asks for it each time, and a source may have millions of names.
        """
        sources = [
            (name, config.weight, len(source), source.identity())
            for (name, config), source in zip(self.train_configs.items(), self.train_sources().values(), strict=True)
        ]
        return hashlib.sha256(repr((sources, self.num_lanes, self.shuffle_window)).encode()).hexdigest()[:16]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in self._identity().items():
            if (was := state_dict["run"].get(name)) != value:
                raise UserError(
                    f"--ckpt_path: the checkpoint's {name} is {was}, this run's is {value}; they must be the same"
                )
        self.fault_log.load_state_dict(state_dict["faults"])
