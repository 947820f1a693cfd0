"""AIMv2's objective: regress the patches behind the prefix, then predict the caption (paper, section 2.1).

Shape letters: B batch, N patches, L text, E encoder width, D decoder width, P patch pixels, M selected rows.
"""

from dataclasses import dataclass, field

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from pretrain.models.attention import PrefixConfig, draw_prefix_len, predicted_patches, prefix_attention
from pretrain.models.decoder import Decoder, DecoderConfig
from pretrain.models.vision import num_patches
from pretrain.objectives.losses import normalise_patches, patchify, pixel_loss_sum, vocabulary_loss_sum
from pretrain.types import ImageTextBatch, LossTerm, UserError


@dataclass(frozen=True)
class AIMv2Config:
    """The objective and its ablations.

    Attributes:
        decoder: size of the decoder (of each, where they are separate).
        prefix: distribution of the prefix length.
        image_weight: factor of the pixel loss (0.4 published, Table 9c); 0 switches it off: a captioner.
        text_weight: factor of the caption loss; 0 switches it off: AIMv1.
        separate_decoders: one decoder for pixels and one for text (Table 9d).
    """

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    prefix: PrefixConfig = field(default_factory=PrefixConfig)
    image_weight: float = 0.4
    text_weight: float = 1.0
    separate_decoders: bool = False


class AIMv2Objective(nn.Module):
    """Owns the decoder; is handed the encoder and a batch, returns loss terms.

    Args:
        config: options.
        encoder: only its sizes are read.
        vocab_size: of the captions' tokenizer.

    Raises:
        UserError: no loss left, a negative weight, or pixels to predict under bidirectional attention.
    """

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
            )

        both = self.predicts_pixels and self.predicts_text
        self.decoder = decoder(
            text=self.predicts_text, pixels=self.predicts_pixels and not (both and config.separate_decoders)
        )
        self.pixel_decoder = decoder(text=False, pixels=True) if both and config.separate_decoders else None

    def forward(
        self, encoder: VisionTransformer, batch: ImageTextBatch, *, prefix_len: int | None = None
    ) -> dict[str, LossTerm]:
        """Loss terms "text_ce" and "image_mse" (those that are switched on).

        Args:
            encoder: a timm ViT; its tokens see each other through `attend_B1NN` only.
            batch: pictures normalised, on the encoder's device.
            prefix_len: the same prefix for all samples, 1..N; drawn from (seed, position) where not given.
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
        hidden_BSD = self.decoder(image_BNE, batch.text_BL if self.predicts_text else None)
        terms = {}
        if self.predicts_text:
            terms["text_ce"] = self._text_term(hidden_BSD[:, self.num_patches :], batch)
        if self.predicts_pixels:
            pixel_BSD = hidden_BSD if self.pixel_decoder is None else self.pixel_decoder(image_BNE)
            terms["image_mse"] = self._pixel_term(pixel_BSD[:, : self.num_patches], batch.image_BCHW, prefix_len_B)
        return terms

    def val_prefixes(self) -> dict[str, int]:
        return {f"image_mse_prefix{quarter * 25}": max(1, self.num_patches * quarter // 4) for quarter in (1, 2, 3)}

    def validation_weights(self) -> dict[str, float]:
        """Share of each validation term in `val/loss`: text under full attention, pixels averaged over three prefixes."""
        weights = {"text_ce": self.config.text_weight} if self.predicts_text else {}
        if self.predicts_pixels:
            weights |= dict.fromkeys(self.val_prefixes(), self.config.image_weight / 3)
        return weights

    def validation_names(self) -> list[str]:
        return list(self.validation_weights())

    def validation_terms(self, encoder: VisionTransformer, batch: ImageTextBatch) -> dict[str, LossTerm]:
        """Terms with fixed prefixes: text under full attention, pixels behind a quarter, a half and three quarters."""
        terms = {}
        if self.predicts_text:
            terms["text_ce"] = self(encoder, batch, prefix_len=self.num_patches)["text_ce"]
        if self.predicts_pixels:
            for name, prefix_len in self.val_prefixes().items():
                terms[name] = self(encoder, batch, prefix_len=prefix_len)["image_mse"]
        return terms

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
