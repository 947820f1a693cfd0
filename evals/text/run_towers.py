"""How well a text fits a picture, by a run's own contrastive towers (`objective.kind` clip or siglip).

The encoder stays as it is loaded: its pooling belongs to the objective, beside the text tower, and no other evaluation sees it.

Shape letters: B pictures, C channels, H/W pixels, T texts, L text tokens, P width of the common space.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evals.encoder import BlockEncoder
from evals.text.caption_scorer import RANDOM
from evals.text.scorers import TowerScorer, weights_of
from pretrain.data.tokenizers import CaptionTokenizer, collate_captions
from pretrain.export import find_export, load_pretrained
from pretrain.objectives.config import ObjectiveConfig
from pretrain.objectives.contrastive import ContrastiveObjective
from pretrain.types import UserError


class RunTowerScorer(TowerScorer):
    """Cosine of pictures and texts in the space that a contrastive run brought them into; scale and bias change no order.

    Args:
        encoder: of the run, on its device.
        objective: holds pooling, text tower and projections.
        tokenizer: of its captions.

    Raises:
        UserError: an objective that pools tokens of another width than the encoder's.
    """

    def __init__(self, encoder: BlockEncoder, *, objective: ContrastiveObjective, tokenizer: CaptionTokenizer) -> None:
        width = objective.pool.attend.kv.in_features
        if width != encoder.embed_dim:
            raise UserError(
                f"--encoder={encoder.provenance.spec}: its pooling takes tokens {width} wide, the encoder's are "
                f"{encoder.embed_dim} wide"
            )
        self.encoder, self.tokenizer = encoder, tokenizer
        self.objective = objective.to(self.device).eval()
        self._num_cut = 0

    def prepare(self, wordings: Sequence[Sequence[str]]) -> Tensor:
        self._num_cut = 0
        return super().prepare(wordings)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        ids = self.tokenizer.encode(texts)
        self._num_cut += sum(len(caption) >= self.tokenizer.context_length for caption in ids)
        text_TL, valid_TL = collate_captions(ids, self.tokenizer.pad_id)
        return self.objective.encode_text(text_TL.to(self.device), valid_TL.to(self.device))

    def encode_pictures(self, image_BCHW: Tensor) -> Tensor:
        # as `encode_image`, on what the encoder gives for pictures of any size that it takes
        return F.normalize(self.objective.pool(self.encoder(image_BCHW).tokens_BND).float(), dim=-1)

    def settings(self) -> dict[str, Any]:
        return {"scorer": self.label, "text_weights": weights_of(self.objective)}

    def notes(self, texts: Tensor) -> dict[str, Any]:
        return {"texts_cut_to_context": self._num_cut} if self._num_cut else {}


def load_towers(spec: str, *, seed: int) -> tuple[ContrastiveObjective, CaptionTokenizer] | None:
    """Text tower, pooling and tokenizer beside a run's encoder; of the same sizes and random for `random:RUN`; None where there
    are none.

    Raises:
        UserError: a damaged export.
    """
    try:
        export = find_export(spec.removeprefix(RANDOM))
    except UserError:
        return None  # no run: another library's model
    model = load_pretrained(export)
    if not isinstance(model.objective, ContrastiveObjective):
        return None
    objective = model.objective
    if spec.startswith(RANDOM):
        config = ObjectiveConfig(kind=objective.kind, contrastive=objective.config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            objective = ContrastiveObjective(config, encoder=model.encoder, vocab_size=model.tokenizer.vocab_size)
        objective.eval().requires_grad_(False)
    return objective, model.tokenizer
