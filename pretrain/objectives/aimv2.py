"""AIMv2's objective: regress the patches behind the prefix, then predict the caption (paper, section 2.1).

Shape letters: B batch, N patches, L text, E encoder width, D decoder width, P patch pixels, M selected rows.
"""

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from pretrain.flops import Attention, Flops, model_flops, model_size
from pretrain.models.attention import draw_prefix_len, predicted_patches, prefix_attention
from pretrain.models.decoder import Decoder
from pretrain.models.vision import num_patches
from pretrain.objectives.config import AIMv2Config
from pretrain.objectives.losses import normalise_patches, patchify, pixel_loss_sum, vocabulary_loss_sum
from pretrain.rng import draw_integers
from pretrain.types import ImageTextBatch, LossTerm, UserError

#: Numbers that a draw of the share `parallel` is made from.
_DRAWS = 1 << 20


class AIMv2Objective(nn.Module):
    """Owns the decoder; is handed the encoder and a batch, returns loss terms.

    Args:
        config: options.
        encoder: only its sizes are read.
        vocab_size: of the captions' tokenizer.

    Raises:
        UserError: no loss left, a negative weight, or pixels to predict under bidirectional attention.
    """

    contrasts = False

    def __init__(self, config: AIMv2Config, *, encoder: VisionTransformer, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.num_patches = num_patches(encoder)
        self.patch_size = encoder.patch_embed.patch_size[0]
        self.predicts_pixels, self.predicts_text = config.image_weight > 0, config.text_weight > 0
        for name in ("image_weight", "text_weight"):
            if getattr(config, name) < 0:
                raise UserError(f"objective.{name}={getattr(config, name)} must not be negative")
        if not (self.predicts_pixels or self.predicts_text):
            raise UserError("objective: image_weight and text_weight are both 0, nothing is left to learn")
        if config.prefix.kind == "bidirectional" and self.predicts_pixels:
            raise UserError(
                "objective.prefix.kind=bidirectional leaves no patch to predict: set objective.image_weight=0"
            )
        if not 0 <= config.parallel < 1:
            raise UserError(
                f"objective.parallel={config.parallel} is a share of captions: give 0 or more, below 1 (from the "
                "others the decoder learns to write)"
            )
        if config.parallel > 0 and self.predicts_pixels:
            raise UserError(
                f"objective.parallel={config.parallel} is CapPa's, which predicts captions alone: set objective.image_weight=0"
            )
        config.prefix.bounds(self.num_patches)
        embed_dim, depth, heads, hidden = config.decoder.resolve(encoder)
        patch_pixels = 3 * self.patch_size**2

        def decoder(*, text: bool, pixels: bool) -> Decoder:
            return Decoder(
                encoder.embed_dim,
                embed_dim=embed_dim,
                depth=depth,
                num_heads=heads,
                mlp_hidden_dim=hidden,
                vocab_size=vocab_size if text else None,
                patch_pixels=patch_pixels if pixels else None,
                masks=config.parallel > 0,
            )

        both = self.predicts_pixels and self.predicts_text
        self.decoder = decoder(
            text=self.predicts_text, pixels=self.predicts_pixels and not (both and config.separate_decoders)
        )
        self.pixel_decoder = decoder(text=False, pixels=True) if both and config.separate_decoders else None

    def forward(
        self,
        encoder: VisionTransformer,
        batch: ImageTextBatch,
        *,
        prefix_len: int | None = None,
        parallel: bool | None = None,
    ) -> dict[str, LossTerm]:
        """Loss terms "text_ce" and "image_mse" (those that are switched on).

        Args:
            encoder: a timm ViT; its tokens see each other through `attend_B1NN` only.
            batch: pictures normalised, on the encoder's device.
            prefix_len: the same prefix for all samples, 1..N; drawn from (seed, position) where not given.
            parallel: whether all captions or none are predicted in parallel (CapPa); drawn likewise where not given.
        """
        if prefix_len is None:
            prefix_len_B = draw_prefix_len(
                self.config.prefix, seed=batch.seed, position_B=batch.position_B, num_patches=self.num_patches
            )
        else:
            prefix_len_B = torch.full_like(batch.position_B, prefix_len)
        # full attention needs no mask, and SDPA is faster without
        full = prefix_len == self.num_patches or (prefix_len is None and self.config.prefix.kind == "bidirectional")
        attend_B1NN = None if full else prefix_attention(prefix_len_B, num_patches=self.num_patches)
        image_BNE = encoder.forward_features(batch.image_BCHW, attn_mask=attend_B1NN)
        hidden_BSD = self.decoder(
            image_BNE, batch.text_BL if self.predicts_text else None, self._masked(batch, parallel=parallel)
        )
        terms = {}
        if self.predicts_text:
            terms["text_ce"] = self._text_term(hidden_BSD[:, self.num_patches :], batch)
        if self.predicts_pixels:
            pixel_BSD = hidden_BSD if self.pixel_decoder is None else self.pixel_decoder(image_BNE)
            terms["image_mse"] = self._pixel_term(pixel_BSD[:, : self.num_patches], batch.image_BCHW, prefix_len_B)
        return terms

    def _masked(self, batch: ImageTextBatch, *, parallel: bool | None) -> Tensor | None:
        """Which captions are predicted in parallel; None for an objective that has no such captions."""
        if self.config.parallel == 0:
            return None
        if parallel is not None:
            return torch.full_like(batch.position_B, parallel, dtype=torch.bool)
        draw_B = draw_integers(batch.seed, "parallel", batch.position_B, 0, _DRAWS - 1)
        return draw_B < round(self.config.parallel * _DRAWS)

    def val_prefixes(self) -> dict[str, int]:
        return {f"image_mse_prefix{quarter * 25}": max(1, self.num_patches * quarter // 4) for quarter in (1, 2, 3)}

    def validation_weights(self) -> dict[str, float]:
        """Share of each validation term in `val/loss`: text under full attention, pixels averaged over three prefixes."""
        weights = {"text_ce": self.config.text_weight * (1 - self.config.parallel)} if self.predicts_text else {}
        if self.config.parallel > 0:
            weights["text_ce_parallel"] = self.config.text_weight * self.config.parallel
        if self.predicts_pixels:
            weights |= dict.fromkeys(self.val_prefixes(), self.config.image_weight / 3)
        return weights

    def validation_names(self) -> list[str]:
        return list(self.validation_weights())

    def validation_terms(self, encoder: VisionTransformer, batch: ImageTextBatch) -> dict[str, LossTerm]:
        """Terms with fixed prefixes: text under full attention, pixels behind a quarter, a half and three quarters."""
        terms = {}
        if self.predicts_text:
            terms["text_ce"] = self(encoder, batch, prefix_len=self.num_patches, parallel=False)["text_ce"]
        if self.config.parallel > 0:
            terms["text_ce_parallel"] = self(encoder, batch, prefix_len=self.num_patches, parallel=True)["text_ce"]
        if self.predicts_pixels:
            for name, prefix_len in self.val_prefixes().items():
                terms[name] = self(encoder, batch, prefix_len=prefix_len)["image_mse"]
        return terms

    def flops(self, encoder: VisionTransformer, batch: ImageTextBatch, *, attention: Attention = "causal") -> Flops:
        """FLOPs of the forward pass (`pretrain.flops`); predicted patches are the expected ones of the prefix's distribution."""
        low, high = self.config.prefix.bounds(self.num_patches)  # M is uniform between them
        return model_flops(
            model_size(encoder, self.decoder, pixel_decoder=self.pixel_decoder),
            text_len=batch.text_BL.shape[1],
            valid_tokens=float(batch.text_valid_BL.sum()),
            predicted_patches=len(batch) * (self.num_patches - (low + high) / 2),
            samples=len(batch),
            attention=attention,
        )

    def _text_term(self, hidden_BLD: Tensor, batch: ImageTextBatch) -> LossTerm:
        valid_BL = batch.text_valid_BL
        total = vocabulary_loss_sum(hidden_BLD[valid_BL], self.decoder.text_head.weight, batch.text_BL[valid_BL])
        return LossTerm(total, valid_BL.sum(), self.config.text_weight)

    def _pixel_term(self, hidden_BND: Tensor, image_BCHW: Tensor, prefix_len_B: Tensor) -> LossTerm:
        loss_BN = predicted_patches(prefix_len_B, num_patches=self.num_patches)[:, 1:]
        # position k predicts patch k + 1
        head = (self.pixel_decoder or self.decoder).pixel_head
        prediction_MP = head(hidden_BND[:, :-1][loss_BN])
        target_MP = normalise_patches(patchify(image_BCHW, patch_size=self.patch_size)[:, 1:][loss_BN].float())
        return LossTerm(pixel_loss_sum(prediction_MP, target_MP), loss_BN.sum(), self.config.image_weight)

    @torch.no_grad()
    def predict_patches(self, encoder: VisionTransformer, image_BCHW: Tensor, *, prefix_len: int) -> Tensor:
        """Normalised predictions of patches 1..N-1, each from the patches in front of it: [B, N - 1, P]."""
        prefix_len_B = torch.full((len(image_BCHW),), prefix_len, device=image_BCHW.device)
        attend_B1NN = prefix_attention(prefix_len_B, num_patches=self.num_patches)
        image_BNE = encoder.forward_features(image_BCHW, attn_mask=attend_B1NN)
        decoder = self.pixel_decoder or self.decoder
        # the last position predicts nothing
        return decoder.pixel_head(decoder(image_BNE)[:, : self.num_patches - 1])

    @torch.no_grad()
    def generate(
        self, encoder: VisionTransformer, image_BCHW: Tensor, prompt_BL: Tensor | None = None, **options: int
    ) -> Tensor:
        """Caption tokens for pictures under full attention; options as :meth:`Decoder.generate`."""
        return self.decoder.generate(encoder.forward_features(image_BCHW), prompt_BL, **options)
