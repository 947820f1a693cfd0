"""The DataModule: a source becomes batches for training and validation."""

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from torch.utils.data import DataLoader

from pretrain.data.faults import FaultLog
from pretrain.data.scene_source import SceneSource
from pretrain.data.shards import ShardSource
from pretrain.data.sources import CocoCaptionSource, FolderSource, Source, TableSource
from pretrain.data.stream import Collate, PositionBatches, SampleStream, SceneStream
from pretrain.data.tokenizers import CaptionTokenizer, build_tokenizer, load_tokenizer
from pretrain.data.transforms import EvalTransform, PlainTransform, TrainTransform
from pretrain.types import ImageSpec, ImageTextBatch, UserError

#: Validation draws nothing from the run's seed: all runs are judged on the same samples.
VAL_SEED = 0
#: Captions that a run's own BPE is trained on, at most.
TOKENIZER_CAPTIONS = 20_000


@dataclass(frozen=True)
class SourceConfig:
    """Where pictures and captions come from.

    Attributes:
        kind: "scenes" (generated), "shards" (WebDataset tars), "coco" (captions json and pictures), "table" (CSV, TSV or
            JSONL of paths and captions) or "folder" (pictures without captions).
        path: shards: folder, glob, brace range or list; coco: the captions json; table: the file; folder: the folder.
        images: coco and table: folder of the pictures.
        image_column: table: column of picture paths.
        caption_column: table: column of captions.
        caption_field: shards: field of the `.json` that holds the caption or captions.
        levels: scenes: weight of each level.
        captions: scenes: weight of each caption style ("short", "full", "alt").
        num_scenes: scenes: how many different ones; never the same twice where not given.
    """

    kind: Literal["scenes", "shards", "coco", "table", "folder"] = "scenes"
    path: str | list[str] | None = None
    images: str | None = None
    image_column: str = "image"
    caption_column: str = "caption"
    caption_field: str | None = None
    levels: dict[str, float] | None = None
    captions: dict[str, float] | None = None
    num_scenes: int | None = None

    def check(self, name: str) -> None:
        """Raise UserError for a missing field, and for one that this kind has no use for."""
        uses = {
            "scenes": {"levels", "captions", "num_scenes"},
            "shards": {"path", "caption_field"},
            "coco": {"path", "images"},
            "table": {"path", "images", "image_column", "caption_column"},
            "folder": {"path"},
        }[self.kind]
        default = SourceConfig()
        for key in vars(self):
            if key != "kind" and key not in uses and getattr(self, key) != getattr(default, key):
                raise UserError(
                    f"data.{name}.{key}={getattr(self, key)!r} is not used by kind={self.kind}: leave it out"
                )
        for key in ("path", "levels", "captions") if self.kind != "coco" else ("path", "images"):
            if key in uses and not getattr(self, key):
                raise UserError(f"data.{name}.{key} is needed with kind={self.kind}")
        if self.kind != "shards" and isinstance(self.path, list):
            raise UserError(f"data.{name}.path must be one path with kind={self.kind}, not a list")

    def build(self, name: str, *, seed: int, split: str, img_size: int) -> Source:
        """The source itself; UserError where a path or field is wrong."""
        self.check(name)
        match self.kind:
            case "scenes":
                return SceneSource(
                    seed=seed,
                    split=split,
                    img_size=img_size,
                    num_scenes=self.num_scenes or 2**40,
                    levels=self.levels,
                    captions=self.captions,
                )
            case "shards":
                return ShardSource(self.path, caption_field=self.caption_field)
            case "coco":
                return CocoCaptionSource(self.path, self.images)
            case "table":
                return TableSource(
                    self.path, images=self.images, image_column=self.image_column, caption_column=self.caption_column
                )
        return FolderSource(self.path)


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of photographs (published: reference, section 4). Scenes are never cropped or flipped.

    Attributes:
        scale: share of the picture's area that a crop keeps.
        ratio: aspect ratios of a crop.
        flip: probability of a mirror image.
    """

    scale: tuple[float, float] = (0.4, 1.0)
    ratio: tuple[float, float] = (0.75, 1.33)
    flip: float = 0.5


def global_batch_size(trainer: lightning.Trainer, batch_size: int) -> int:
    """Samples of one optimiser step, over devices and micro-batches, where a device's micro-batch holds `batch_size`."""
    return batch_size * trainer.world_size * trainer.accumulate_grad_batches


class ImageTextData(lightning.LightningDataModule):
    """Captioned pictures for training and validation.

    Args:
        train: training source.
        val: validation source; scenes' validation split where training is on scenes and this is not given.
        image: picture size and statistics (taken from the encoder).
        batch_size: pictures of a step on one device.
        num_workers: loader processes on one device; 0 loads in the training process.
        tokenizer: "bpe" (trained on this run's captions), "clip", or a Hugging Face tokenizer's name or folder.
        vocab_size: of the "bpe" tokenizer.
        num_val: validation samples.
        augment: crops and flips of photographs.
        max_fault_share: most samples of the last 10,000 that may be unusable.
        seed: decides the order and every draw.
    """

    def __init__(
        self,
        train: SourceConfig,
        val: SourceConfig | None = None,
        *,
        image: ImageSpec,
        batch_size: int = 64,
        num_workers: int = 1,
        tokenizer: str = "bpe",
        vocab_size: int = 1024,
        num_val: int = 256,
        augment: AugmentConfig | None = None,
        max_fault_share: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("num_val", num_val, 1),
        ):
            if value < least:
                raise UserError(f"data.{name}={value} must be at least {least}")
        self.train_config, self.val_config = train, val or train
        if val is None and train.kind != "scenes":
            raise UserError(f"data.val is needed with data.train.kind={train.kind}: name a source of held-out pictures")
        self.image, self.batch_size, self.num_workers, self.seed = image, batch_size, num_workers, seed
        self.tokenizer_name, self.vocab_size, self.num_val = tokenizer, vocab_size, num_val
        self.augment = augment or AugmentConfig()
        self.fault_log = FaultLog(bound=max_fault_share)
        self.tokenizer: CaptionTokenizer | None = None
        self._train_source: Source | None = None
        self._val_faults: set[str] = set()
        self.train_stream: SampleStream | None = None
        self.val_stream: SampleStream | None = None

    def train_source(self) -> Source:
        if self._train_source is None:
            self._train_source = self.train_config.build(
                "train", seed=self.seed, split="train", img_size=self.image.img_size
            )
            self.fault_log.record(0, self._train_source.faults)
        return self._train_source

    @property
    def tokenizer_folder(self) -> Path:
        return Path(self.trainer.default_root_dir) / "tokenizer"

    def prepare_data(self) -> None:
        """Build the tokenizer and keep it with the run; a resumed run finds it there."""
        folder = self.tokenizer_folder
        if self.trainer.ckpt_path is not None and folder.exists():
            return
        beside = folder.with_name(".tokenizer.tmp")
        for old in (beside, folder):
            shutil.rmtree(old, ignore_errors=True)
        self._build_tokenizer().save(beside)
        beside.rename(folder)

    def _build_tokenizer(self) -> CaptionTokenizer:
        def captions() -> Iterable[str]:
            return self.train_source().iter_captions(TOKENIZER_CAPTIONS)

        return build_tokenizer(self.tokenizer_name, captions, self.vocab_size)

    def setup(self, stage: str) -> None:
        if self.val_stream is not None:  # validation after the last step: all is there
            return
        self.tokenizer = load_tokenizer(self.tokenizer_folder)
        source = self.train_source()
        plain = PlainTransform(self.image.img_size)
        augment = TrainTransform(
            self.image.img_size, scale=self.augment.scale, ratio=self.augment.ratio, flip=self.augment.flip
        )
        scenes = isinstance(source, SceneSource)
        self.train_stream = (SceneStream if scenes else SampleStream)(
            source,
            transform=plain if scenes else augment,
            tokenizer=self.tokenizer,
            seed=self.seed,
            shuffled=True,
            length=2**62,
        )
        held_out = self.val_config.build("val", seed=VAL_SEED, split="val", img_size=self.image.img_size)
        self.fault_log.record(0, held_out.faults)
        self.val_stream = SampleStream(
            held_out,
            transform=plain if isinstance(held_out, SceneSource) else EvalTransform(self.image.img_size),
            tokenizer=self.tokenizer,
            seed=VAL_SEED,
            shuffled=False,
            length=min(self.num_val, len(held_out)),
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
        return {"seed": self.seed, "batch size over devices and accumulation": global_batch, "tokenizer": digest[:16]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in self._identity().items():
            if (was := state_dict["run"][name]) != value:
                raise UserError(
                    f"--ckpt_path: the checkpoint's {name} is {was}, this run's is {value}; they must be the same"
                )
        self.fault_log.load_state_dict(state_dict["faults"])
