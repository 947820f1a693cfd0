"""MAE (He et al. 2022): hide most patches, encode the others alone, restore the hidden pixels with a small decoder.

Shape letters: B batch, C channels, H/W pixels, N patches, K visible and M hidden patches of a picture (N = K + M), E encoder
width, D decoder width, P patch pixels (3 * patch_size ** 2), X any width.

What differs from the published code, for a fair comparison within this suite: the decoder's blocks are of the same parts as
AIMv2's encoder and decoder (RMSNorm, SwiGLU, no biases), and there is no class token. As many patches are hidden as `mask_ratio`
rounds to, where MAE rounds the visible ones down.
"""

from functools import partial
from typing import NamedTuple

import torch
from timm.layers import SwiGLU
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from pretrain.flops import Attention, Flops, stack_size
from pretrain.models.norm import RMSNorm
from pretrain.models.sizes import swiglu_hidden_dim
from pretrain.models.vision import init_published, mlp_ratio, num_patches
from pretrain.objectives.config import MAEConfig, ObjectiveConfig
from pretrain.objectives.losses import normalise_patches, patch_statistics, patchify, pixel_loss_sum, unpatchify
from pretrain.rng import draw_integers
from pretrain.types import ImageTextBatch, LossTerm, UserError


class Mask(NamedTuple):
    """Which patches of each picture are seen; int64 numbers of patches, in order.

    Attributes:
        visible_BK: what the encoder sees.
        hidden_BM: what is to be restored.
    """

    visible_BK: Tensor
    hidden_BM: Tensor


def draw_mask(position_B: Tensor, *, seed: int, stream: str, num_patches: int, num_hidden: int) -> Mask:
    """Masks that are functions of (seed, the sample's number in the run).

    Each patch gets a random number, those with the smallest are hidden: every choice of patches is equally likely, but for equal
    numbers (of 31 bits), where the first patch comes first.
    """
    patch_N = torch.arange(num_patches, device=position_B.device)
    place_BN = position_B[:, None] * num_patches + patch_N
    number_BN = draw_integers(seed, stream, place_BN.flatten(), 0, 2**31 - 1).view_as(place_BN)
    order_BN = number_BN.argsort(dim=-1, stable=True)
    hidden_BM, visible_BK = order_BN.split((num_hidden, num_patches - num_hidden), dim=-1)
    return Mask(visible_BK.sort(-1).values, hidden_BM.sort(-1).values)


def take(x_BNX: Tensor, index_BK: Tensor) -> Tensor:
    """Rows `index_BK` of each sample: [B, K, X]."""
    return x_BNX.gather(1, index_BK[..., None].expand(-1, -1, x_BNX.shape[-1]))


def encode_visible(encoder: VisionTransformer, image_BCHW: Tensor, visible_BK: Tensor) -> Tensor:
    """The encoder's tokens of the visible patches, which see each other only; [B, K, E].

    Patches leave at `patch_drop`, the place that timm's ViT has for it: behind the patchifier (with its norm, in AIMv2) and the
    positions, which keep patches apart, in front of `norm_pre` and the blocks. `build_encoder` makes sure that it is an identity.
    A hook on it, rather than the encoder's parts called one by one: all runs within `forward_features`, around which FSDP2
    gathers the weights, and the blocks, recomputed or compiled, know nothing of masks.
    """

    def keep(module: nn.Module, inputs: tuple[Tensor], x_BNE: Tensor) -> Tensor:
        return take(x_BNE, visible_BK)

    with encoder.patch_drop.register_forward_hook(keep):
        tokens_BKE = encoder.forward_features(image_BCHW)
    assert tokens_BKE.shape[1] == visible_BK.shape[1], "the encoder passed its patch_drop by"
    return tokens_BKE


class MAEDecoder(nn.Module):
    """Full self-attention over all places: the encoder's tokens where patches are visible, one learned token elsewhere.

    Positions are fixed sines and cosines of row and column, as MAE's decoder has them: hidden places, which all hold the same
    token, are told apart from the first step on.

    Args:
        encoder_dim: E.
        config: its sizes.
        grid_size: rows and columns of patches.
        patch_pixels: P.
    """

    def __init__(self, encoder_dim: int, config: MAEConfig, *, grid_size: tuple[int, int], patch_pixels: int) -> None:
        super().__init__()
        width, norm = config.embed_dim, partial(RMSNorm, eps=1e-5)
        self.image_proj = nn.Linear(encoder_dim, width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(width))  # a vector: the optimiser decays matrices only
        # not kept with the weights: it follows from the sizes
        self.register_buffer("position_ND", build_sincos2d_pos_embed(list(grid_size), width), persistent=False)
        # the decoder's blocks of AIMv2 without the causal mask, which is to say the encoder's
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.num_heads,
                mlp_ratio=mlp_ratio(swiglu_hidden_dim(width), embed_dim=width),
                proj_bias=False,
                act_layer=nn.SiLU,
                norm_layer=norm,
                mlp_layer=SwiGLU,
            )
            for _ in range(config.depth)
        )
        self.norm = norm(width)
        self.pixel_head = nn.Linear(width, patch_pixels, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """As AIMv2's decoder: matrices xavier uniform, the learned token N(0, 0.02), the head by fan-in and depth."""
        init_published(self)
        nn.init.normal_(self.pixel_head.weight, std=(2 * len(self.blocks) * self.image_proj.out_features) ** -0.5)

    def forward(self, tokens_BKE: Tensor, mask: Mask) -> Tensor:
        """Predictions of the hidden patches, normalised, in the order of `mask.hidden_BM`; [B, M, P]."""
        # the residual stream stays in the weights' type, fp32, under autocast
        visible_BKD = self.image_proj(tokens_BKE).to(self.mask_token.dtype)
        x_BND = self.mask_token.expand(len(visible_BKD), len(self.position_ND), -1)
        x_BND = x_BND.scatter(1, mask.visible_BK[..., None].expand_as(visible_BKD), visible_BKD)
        x_BND = x_BND + self.position_ND
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.pixel_head(self.norm(take(x_BND, mask.hidden_BM)))


class MAEObjective(nn.Module):
    """Owns the decoder; is handed the encoder and a batch, of which captions are not read.

    Args:
        config: `kind` "mae"; of the other fields, `mae`.
        encoder: only its sizes are read.
        vocab_size: of no account.

    Raises:
        UserError: sizes that cannot be meant or do not divide, a share that leaves no patch visible or hidden, or an encoder
            with class or register tokens, without positions, or one that drops patches itself.
    """

    predicts_text = False
    predicts_pixels = False
    contrasts = False

    def __init__(self, config: ObjectiveConfig, *, encoder: VisionTransformer, vocab_size: int) -> None:
        super().__init__()
        assert config.kind == "mae", config.kind
        self.config = config.mae
        _check_encoder(encoder)
        self.num_patches, self.patch_size = num_patches(encoder), encoder.patch_embed.patch_size[0]
        self.num_hidden = _num_hidden(self.config, num_patches=self.num_patches)
        self.decoder = MAEDecoder(
            encoder.embed_dim,
            self.config,
            grid_size=encoder.patch_embed.grid_size,
            patch_pixels=3 * self.patch_size**2,
        )

    def forward(
        self, encoder: VisionTransformer, batch: ImageTextBatch, *, validates: bool = False
    ) -> dict[str, LossTerm]:
        """The loss term "masked_mse": squared error of normalised pixels, a mean over a patch's, over the hidden patches.

        Args:
            encoder: a timm ViT; the visible patches' tokens see each other under full attention.
            batch: pictures normalised, on the encoder's device.
            validates: see `validation_terms`, which goes through here because FSDP2 gathers weights around `forward`.
        """
        mask = self.fixed_mask(batch.position_B) if validates else self.mask(batch.position_B, seed=batch.seed)
        prediction_BMP = self.decoder(encode_visible(encoder, batch.image_BCHW, mask.visible_BK), mask)
        patch_BNP = patchify(batch.image_BCHW, patch_size=self.patch_size)
        target_BMP = normalise_patches(take(patch_BNP, mask.hidden_BM).float())
        count = torch.tensor(mask.hidden_BM.numel(), device=prediction_BMP.device)
        return {"masked_mse": LossTerm(pixel_loss_sum(prediction_BMP, target_BMP), count, 1.0)}

    def mask(self, position_B: Tensor, *, seed: int) -> Mask:
        """A training step's masks."""
        return self._draw(position_B, seed=seed, stream="mae")

    def fixed_mask(self, position_B: Tensor) -> Mask:
        """Masks of validation, the same in every run whatever its seed: one for each number of a sample."""
        return self._draw(position_B, seed=0, stream="mae_fixed")

    def _draw(self, position_B: Tensor, *, seed: int, stream: str) -> Mask:
        return draw_mask(position_B, seed=seed, stream=stream, num_patches=self.num_patches, num_hidden=self.num_hidden)

    def validation_names(self) -> list[str]:
        return ["masked_mse"]

    def validation_weights(self) -> dict[str, float]:
        """Share of each validation term in `val/loss`."""
        return {"masked_mse": 1.0}

    def validation_terms(self, encoder: VisionTransformer, batch: ImageTextBatch) -> dict[str, LossTerm]:
        """The loss under `fixed_mask`."""
        return self(encoder, batch, validates=True)

    @torch.no_grad()
    def predict_patches(self, encoder: VisionTransformer, image_BCHW: Tensor, mask: Mask) -> Tensor:
        """Normalised predictions of the hidden patches, fp32; [B, M, P]. One of the names around which FSDP2 gathers weights."""
        return self.decoder(encode_visible(encoder, image_BCHW, mask.visible_BK), mask).float()

    @torch.no_grad()
    def predict(
        self, encoder: VisionTransformer, image_BCHW: Tensor, *, position_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pictures as restored from their visible patches.

        A prediction is a normalised patch: it is put back into pixels with the true patch's mean and deviation, as for AIMv2's
        pictures, so that what is judged is the structure within a patch.

        Args:
            encoder: a timm ViT.
            image_BCHW: normalised.
            position_B: int64, names the (fixed) masks; 0, 1, ... where not given.

        Returns:
            shown_BCHW, normalised as the input, visible patches as they were; hidden_B1HW, True on pixels of hidden patches.
        """
        if position_B is None:
            position_B = torch.arange(len(image_BCHW), device=image_BCHW.device)
        mask, img_size = self.fixed_mask(position_B), image_BCHW.shape[-1]
        prediction_BMP = self.predict_patches(encoder, image_BCHW, mask)
        patch_BNP = patchify(image_BCHW, patch_size=self.patch_size).float()
        index_BMP = mask.hidden_BM[..., None].expand_as(prediction_BMP)
        mean_BM1, std_BM1 = patch_statistics(take(patch_BNP, mask.hidden_BM))
        shown_BNP = patch_BNP.scatter(1, index_BMP, prediction_BMP * std_BM1 + mean_BM1)
        hidden_BNP = torch.zeros_like(patch_BNP, dtype=torch.bool).scatter(1, index_BMP, True)
        shown, hidden = (unpatchify(x, patch_size=self.patch_size, img_size=img_size) for x in (shown_BNP, hidden_BNP))
        return shown, hidden[:, :1]

    def flops(self, encoder: VisionTransformer, batch: ImageTextBatch, *, attention: Attention = "causal") -> Flops:
        """FLOPs of the forward pass, as `pretrain.flops` counts them.

        The patchifier runs on all patches, the encoder's blocks on the visible ones, the decoder's on all places, its head on the
        hidden ones. No attention is causal here, so `attention` changes nothing.
        """
        samples, hidden, width = len(batch.image_BCHW), self.num_hidden, self.config.embed_dim
        visible = self.num_patches - hidden
        blocks, decoder = stack_size(encoder.blocks, encoder.embed_dim), stack_size(self.decoder.blocks, width)
        patches = samples * self.num_patches
        return Flops(
            patchifier=2 * patches * encoder.patch_embed.proj.weight.numel(),
            encoder=blocks.forward_flops(tokens=samples * visible, pairs=samples * visible**2),
            decoder=decoder.forward_flops(tokens=patches, pairs=patches * self.num_patches)
            + 2 * samples * visible * self.decoder.image_proj.weight.numel(),
            pixel_head=2 * samples * hidden * self.decoder.pixel_head.weight.numel(),
        )


def _check_encoder(encoder: VisionTransformer) -> None:
    """UserError for an encoder that part of the patches cannot go through; of `build_encoder`'s, those without positions."""
    if encoder.pos_embed is None:
        raise UserError(
            "objective.kind=mae needs an encoder that adds positions to its patches, which this one (pos_embed: none) does not: "
            "take another encoder.name"
        )
    if encoder.num_prefix_tokens:
        raise UserError(
            f"objective.kind=mae takes patches alone, and the encoder has {encoder.num_prefix_tokens} class or register tokens: "
            "build it with class_token=False, reg_tokens=0"
        )
    if not isinstance(encoder.patch_drop, nn.Identity):
        raise UserError("objective.kind=mae hides patches itself: build the encoder with patch_drop_rate=0")


def _num_hidden(config: MAEConfig, *, num_patches: int) -> int:
    """M; UserError for options that cannot be meant."""
    place = "objective.mae"
    for name in ("embed_dim", "depth", "num_heads"):
        if (value := getattr(config, name)) < 1:
            raise UserError(f"{place}.{name}={value} must be at least 1")
    if config.embed_dim % config.num_heads:
        raise UserError(f"{place}.num_heads={config.num_heads} must divide {place}.embed_dim={config.embed_dim}")
    if config.embed_dim % 4:
        raise UserError(
            f"{place}.embed_dim={config.embed_dim} must be a multiple of 4: sine and cosine of row and of column"
        )
    if not 0 < config.mask_ratio < 1:
        raise UserError(f"{place}.mask_ratio={config.mask_ratio} must lie between 0 and 1")
    hidden = round(num_patches * config.mask_ratio)
    if not 0 < hidden < num_patches:
        raise UserError(
            f"{place}.mask_ratio={config.mask_ratio} hides {hidden} of {num_patches} patches: 1 to {num_patches - 1} must be"
        )
    return hidden
