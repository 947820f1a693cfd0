"""A small encoder and small sets of labelled pictures."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from evals.data.labelled import BadSample, LabelledSet
from evals.encoder import BlockEncoder, Provenance
from evals.transforms import ImageTransform
from pretrain.types import Fault, ImageSpec


class DrawnSet(LabelledSet):
    """Pictures of one colour a class with some noise; `bad` ones cannot be read."""

    def __init__(self, count, *, classes=3, split="train", bad=(), size=16, name="drawn", seed=0):
        self.name, self.split, self.size, self.bad, self.seed = name, split, size, set(bad), seed
        self.classes = [f"class{label}" for label in range(classes)]
        self.label_N = np.arange(count) % classes
        self.num_loads = 0

    def load(self, index):
        self.num_loads += 1
        if index in self.bad:
            raise BadSample(Fault("corrupt", self.key(index), "made so"))
        rng = np.random.default_rng([self.seed, self.split == "test", index])
        pixels = rng.integers(0, 60, (self.size, self.size, 3))
        pixels[..., self.label_N[index] % 3] += 150
        return Image.fromarray(pixels.astype(np.uint8))

    def key(self, index):
        return f"{self.split}{index}"

    def pictures_identity(self):
        return f"drawn {self.split} {len(self)} {self.size} {sorted(self.bad)} {self.seed}"


@pytest.fixture
def drawn_set():
    return DrawnSet


@pytest.fixture
def tiny_encoder():
    """A timm ViT of 16 patches, 32 wide; `class_token` gives it one."""

    def build(*, class_token=False, seed=0, spec="tiny"):
        torch.manual_seed(seed)
        vit = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=16,
            patch_size=4,
            embed_dim=32,
            depth=1,
            num_heads=2,
            num_classes=0,
            class_token=class_token,
            global_pool="token" if class_token else "avg",
            fc_norm=False,
        )
        provenance = Provenance(spec=spec, architecture="vit_tiny_patch16_224", objective="random")
        return BlockEncoder(vit, transform=ImageTransform(ImageSpec(16)), provenance=provenance)

    return build


@pytest.fixture(scope="session")
def tiny_config():
    """The config of a run of two steps on scenes, with the objective that is given."""

    def make(objective):
        return {
            "seed_everything": 3,
            "trainer": {"max_steps": 2, "val_check_interval": 2, "log_every_n_steps": 1, "enable_progress_bar": False},
            "model": {
                "encoder": {"name": "aimv2_nano_patch4_32", "embed_dim": 32, "depth": 1, "mlp_hidden_dim": 64},
                "objective": objective,
                "optim": {"lr": 1e-3, "warmup_steps": 1},
            },
            "data": {
                "batch_size": 4,
                "num_workers": 0,
                "num_val": 4,
                "vocab_size": 300,
                "train": {"kind": "scenes", "levels": {"one": 1.0}, "captions": {"short": 1.0}},
            },
        }

    return make
