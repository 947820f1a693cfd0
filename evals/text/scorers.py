"""How well a text fits a picture, by an encoder's text tower; the interface is the decoder's too (`caption_scorer.py`), and that
of this suite's own contrastive runs (`run_towers.py`).

Shape letters: B pictures, C channels, H/W pixels, T things that are named (classes, captions), W wordings of all of them,
E width of the space shared by pictures and texts.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evals.encoder import TokenEncoder
from pretrain.types import UserError

#: Texts as a scorer keeps them.
P = TypeVar("P")
_TEXTS_AT_ONCE = 256


class ImageTextScorer(ABC, Generic[P]):
    """Scores of texts for pictures: higher fits better. Texts are prepared once, pictures come in batches.

    Attributes:
        encoder: sees the pictures.
        label: what the score is, for tables and rows.
    """

    encoder: TokenEncoder
    label: str

    @abstractmethod
    def prepare(self, wordings: Sequence[Sequence[str]]) -> P:
        """What :meth:`similarity` takes: T things, each by one wording or more."""

    @abstractmethod
    def similarity(self, image_BCHW: Tensor, texts: P) -> Tensor:
        """float32 [B, T] on the CPU, of uint8 pictures as the encoder's transform makes them."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What decides the scores beside the encoder: options, and the text side's weights by a short name."""

    def notes(self, texts: P) -> dict[str, Any]:
        """What a reader should know about these texts, by name; nothing where all is well."""
        return {}

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def normalise(self, image_BCHW: Tensor) -> Tensor:
        return self.encoder.transform.spec.normalise(image_BCHW.to(self.device))


def weights_of(module: nn.Module) -> str:
    """A short name for a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        tensor = tensor.detach().cpu().contiguous()
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()[:16]


class TowerScorer(ImageTextScorer[Tensor]):
    """Cosine of the picture's and the text's vectors in the space that they share.

    Several wordings of one thing are one vector: the mean of their normalised vectors, normalised again (CLIP, section 3.1.4).

    Args:
        encoder: with a text tower, on its device.

    Raises:
        UserError: no text tower.
    """

    label = "cosine"

    def __init__(self, encoder: TokenEncoder) -> None:
        if encoder.text is None:
            raise UserError(f"--encoder={encoder.provenance.spec} has no text tower")
        self.encoder = encoder

    @torch.no_grad()
    def prepare(self, wordings: Sequence[Sequence[str]]) -> Tensor:
        """float32 [T, E], of length 1."""
        flat_W = [text for texts in wordings for text in texts]
        parts = [
            F.normalize(self.encode_texts(flat_W[start : start + _TEXTS_AT_ONCE]).float(), dim=-1)
            for start in range(0, len(flat_W), _TEXTS_AT_ONCE)
        ]
        groups = torch.cat(parts).split([len(texts) for texts in wordings])
        return F.normalize(torch.stack([vectors.mean(0) for vectors in groups]), dim=-1)

    @torch.no_grad()
    def similarity(self, image_BCHW: Tensor, texts: Tensor) -> Tensor:
        pooled_BE = self.encode_pictures(self.normalise(image_BCHW))
        spec = self.encoder.provenance.spec
        if pooled_BE is None or pooled_BE.shape[-1] != texts.shape[-1]:
            found = "none" if pooled_BE is None else f"one {pooled_BE.shape[-1]} wide"
            raise UserError(
                f"--encoder={spec}: its text vectors are {texts.shape[-1]} wide, its picture vector is {found}"
            )
        return (F.normalize(pooled_BE.float(), dim=-1) @ texts.to(pooled_BE.device).T).cpu()

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """[T, E], of any length."""
        return self.encoder.text.encode_text(texts)

    def encode_pictures(self, image_BCHW: Tensor) -> Tensor | None:
        """[B, E], of any length, of normalised pictures; None where the encoder has no vector of its own."""
        return self.encoder(image_BCHW).pooled_BE

    def settings(self) -> dict[str, Any]:
        return {"scorer": self.label, "text_weights": weights_of(self.encoder.text)}
