"""The connector: patch tokens of a frozen encoder become tokens of a causal language model (reference, section 7, Table C1).

Shape letters: B sequences, S tokens, I pictures, N patches, D width of the encoder's tokens, W width of the language model's,
V vocabulary, K kept positions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evals.multimodal.examples import Generation
from evals.multimodal.language import Language
from evals.multimodal.sequences import SequenceBatch, attend_mask
from pretrain.rng import draw_key


class Connector(nn.Sequential):
    """Two linear layers with GELU between them, as LLaVA-1.5's; [.., D] to [.., W]."""

    def __init__(self, token_dim: int, width: int) -> None:
        super().__init__(nn.Linear(token_dim, width), nn.GELU(), nn.Linear(width, width))


class ConnectorModel(nn.Module):
    """Pictures' tokens through the connector into a language model.

    Args:
        language: with the model, which becomes a part of this module.
        token_dim: D; None for a model that sees no pictures.
        model: in place of the language's own, e.g. with adapters.
    """

    def __init__(self, language: Language, *, token_dim: int | None, model: nn.Module | None = None) -> None:
        super().__init__()
        self.language = language
        self.lm = language.model if model is None else model
        self.connector = None if token_dim is None else Connector(token_dim, language.width)

    def embed(self, batch: SequenceBatch) -> Tensor:
        """Inputs of the language model: [B, S, W]."""
        embedded_BSW = self.lm.get_input_embeddings()(batch.ids_BS)
        if self.connector is None or batch.tokens_IND is None:
            return embedded_BSW
        pictures = self.connector(batch.tokens_IND).flatten(0, 1).to(embedded_BSW.dtype)
        return embedded_BSW.masked_scatter(batch.slot_BS[..., None], pictures)

    def loss(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Sum of the cross entropy over the tokens that are learned, and their number."""
        embedded_BSW = self.embed(batch)
        attend_B1SS = attend_mask(batch)
        if attend_B1SS is None:
            attention = batch.valid_BS.long()
        else:  # added to the scores, which every implementation of attention understands
            attention = torch.zeros_like(attend_B1SS, dtype=embedded_BSW.dtype)
            attention.masked_fill_(~attend_B1SS, torch.finfo(embedded_BSW.dtype).min)
        before_BS, target_BS = self._predicted_by(batch)
        keep_K = before_BS.any(0).nonzero()[:, 0]  # a large vocabulary's logits are made where some row needs them only
        logits_BKV = self.lm(
            inputs_embeds=embedded_BSW,
            attention_mask=attention,
            position_ids=batch.position_BS,
            use_cache=False,
            logits_to_keep=keep_K,
        ).logits
        chosen_BK = before_BS[:, keep_K]
        loss = F.cross_entropy(logits_BKV[chosen_BK].float(), target_BS[:, keep_K][chosen_BK], reduction="sum")
        return loss, chosen_BK.sum()

    @staticmethod
    def _predicted_by(batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Positions that predict a learned token, and the token that each position predicts.

        In independent turns too the token in front of a learned one is of the same turn, or the last of what all share.
        """
        before_BS, target_BS = torch.zeros_like(batch.target_BS), torch.zeros_like(batch.ids_BS)
        before_BS[:, :-1], target_BS[:, :-1] = batch.target_BS[:, 1:], batch.ids_BS[:, 1:]
        return before_BS, target_BS

    @torch.no_grad()
    def answer(self, batch: SequenceBatch, generation: Generation, *, use_cache: bool = True) -> list[str]:
        """What is generated behind each prompt of a batch that is padded on the left."""
        made_BT = self.generate(batch, generation, use_cache=use_cache)
        return [self.language.decode(row) for row in made_BT.tolist()]

    @torch.no_grad()
    def generate(self, batch: SequenceBatch, generation: Generation, *, use_cache: bool = True) -> Tensor:
        """Generated ids, int64 [B, T], by transformers' own generation."""
        sampled = generation.temperature > 0
        sampling = {"temperature": generation.temperature, "top_k": generation.top_k or 0} if sampled else {}
        device = batch.ids_BS.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # of the seed and the batch's first example: what is sampled depends on who stands in one batch
            torch.manual_seed(draw_key(generation.seed, "multimodal/answer", int(batch.number_B[0])) >> 1)
            return self.lm.generate(
                inputs_embeds=self.embed(batch),
                attention_mask=batch.valid_BS.long(),
                max_new_tokens=generation.max_tokens,
                num_beams=generation.num_beams,
                do_sample=sampled,
                # until no open beam can win, as the kept decoder's search
                early_stopping="never" if generation.num_beams > 1 else None,
                length_penalty=generation.length_penalty if generation.num_beams > 1 else None,
                eos_token_id=self.language.eos_ids,
                pad_token_id=self.language.filler_id,
                use_cache=use_cache,
                **sampling,
            )
