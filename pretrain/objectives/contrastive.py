"""CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023): pictures and captions meet in one space.

Shape letters: B batch (of this rank), C channels, H/W pixels, N patches, L text, E encoder width, P width of the common space.

Ranks. open_clip's losses give rank r the mean over its own B rows, against the columns of all W ranks. With rows spread
evenly the loss of the whole batch is the ranks' mean, (1 / W) sum_r loss_r. As terms: total = B * loss_r, count = B, so the
module's rule W * total / (sum of counts) makes it loss_r again. Features reach other ranks through exchanges that carry
gradients back, so rank r's backward pass gives its features the gradient of sum_s loss_s, and scale and bias that of loss_r;
averaged over ranks both are the gradient of the whole batch's loss.
"""

import math

import torch
from timm.models import VisionTransformer
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from pretrain.flops import Attention, Flops, StackSize, stack_size
from pretrain.models.pooling import AttentionPooling
from pretrain.models.text_tower import TextTower
from pretrain.models.vision import num_patches
from pretrain.objectives.config import ContrastiveConfig, ObjectiveConfig
from pretrain.types import ImageTextBatch, LossTerm, UserError

#: First temperatures: CLIP's (reference, section 5), SigLIP's (t' = log 10).
_TEMPERATURE = {"clip": 0.07, "siglip": 0.1}
#: Options that only one of the kinds reads.
_ONLY = {"max_scale": "clip", "bias": "siglip"}


class ContrastiveObjective(nn.Module):
    """Owns the text tower, the pooling over the encoder's tokens, scale and bias; the losses are open_clip's.

    Args:
        config: `kind` "clip" or "siglip"; of the other fields, `contrastive`.
        encoder: only its sizes are read.
        vocab_size: of the captions' tokenizer.

    Raises:
        UserError: sizes that cannot be meant or do not divide, or an option that the kind has no use for.
    """

    predicts_text = False
    predicts_pixels = False
    contrasts = True

    def __init__(self, config: ObjectiveConfig, *, encoder: VisionTransformer, vocab_size: int) -> None:
        super().__init__()
        assert config.kind in _TEMPERATURE, config.kind
        self.kind, self.config = config.kind, config.contrastive
        _check(self.config, kind=self.kind, encoder_dim=encoder.embed_dim)
        text, proj_dim = self.config.text, self.config.proj_dim
        self.text = TextTower(
            vocab_size,
            embed_dim=text.embed_dim,
            depth=text.depth,
            num_heads=text.num_heads,
            mlp_hidden_dim=text.mlp_hidden_dim,
        )
        self.text_proj = nn.Linear(text.embed_dim, proj_dim, bias=False)
        nn.init.normal_(self.text_proj.weight, std=text.embed_dim**-0.5)  # as CLIP's
        self.pool = AttentionPooling(encoder.embed_dim, num_heads=self.config.pool_heads, out_dim=proj_dim)
        temperature = self.config.temperature or _TEMPERATURE[self.kind]
        # vectors of one: FSDP2 cannot shard a scalar, and the optimiser decays matrices only
        self.logit_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))
        self.logit_bias = nn.Parameter(torch.tensor([self.config.bias])) if self.kind == "siglip" else None

    @property
    def scale(self) -> Tensor:
        """What similarities are multiplied with, exp(logit_scale), [1]."""
        return self.logit_scale.exp()

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep CLIP's scale at `max_scale` or below (reference, section 5), once the optimiser has moved it."""
        if self.kind == "clip":
            self.logit_scale.clamp_(max=math.log(self.config.max_scale))

    def forward(
        self, encoder: VisionTransformer, batch: ImageTextBatch, *, validates: bool = False
    ) -> dict[str, LossTerm]:
        """The loss term "contrastive": the whole step's pictures and captions, of all ranks, against each other.

        Args:
            encoder: a timm ViT; its tokens see each other under full attention.
            batch: pictures normalised, on the encoder's device; as many on each rank.
            validates: see `validation_terms`, which goes through here because FSDP2 gathers weights around `forward`.

        Raises:
            UserError: a picture without a caption, a step of one sample, ranks with batches of different sizes; on all ranks
                at once.
        """
        if not validates:
            _check_batch(batch)
        image_BP, text_BP = self._image(encoder, batch.image_BCHW), self._text(batch.text_BL, batch.text_valid_BL)
        if not validates:
            count = torch.tensor(len(batch), device=image_BP.device)
            return {"contrastive": LossTerm(self.loss(image_BP, text_BP) * count, count, 1.0)}
        # a rank that stopped alone would leave the others waiting: what has no caption has no target, as for a decoder
        has_caption_B = batch.text_valid_BL.any(-1)
        image_BP, text_BP = image_BP[has_caption_B], text_BP[has_caption_B]
        count = torch.tensor(len(image_BP), device=image_BP.device)
        total = missed = image_BP.sum() * 0
        if len(image_BP):
            total = self.loss(image_BP, text_BP, alone=True) * count
            missed = _num_missed(image_BP, text_BP)
        return {"contrastive": LossTerm(total, count, 1.0), "retrieval_error": LossTerm(missed, count, 0.0)}

    def loss(self, image_BP: Tensor, text_BP: Tensor, *, alone: bool = False) -> Tensor:
        """Mean loss of this rank's rows; scalar, fp32.

        Args:
            image_BP: normalised, fp32.
            text_BP: likewise; row b belongs to picture b.
            alone: leave other ranks out.
        """
        from open_clip.loss import ClipLoss, SigLipLoss  # takes seconds, and most runs do not need it

        ranks = {"rank": 0, "world_size": 1}
        if not alone and _world_size() > 1:
            ranks = {"rank": distributed.get_rank(), "world_size": _world_size()}
        with torch.autocast(image_BP.device.type, enabled=False):  # which would take the similarities in bf16
            if self.kind == "clip":
                return ClipLoss(local_loss=True, gather_with_grad=True, **ranks)(image_BP, text_BP, self.scale)
            # captions go from neighbour to neighbour: [B, B] similarities at a time (all are kept for the backward pass), and no
            # process gathers the captions of all
            return SigLipLoss(**ranks)(image_BP, text_BP, self.scale, self.logit_bias)

    def validation_names(self) -> list[str]:
        return ["contrastive", "retrieval_error"]

    def validation_weights(self) -> dict[str, float]:
        """Share of each validation term in `val/loss`; the retrieval error is no loss."""
        return {"contrastive": 1.0}

    def validation_terms(self, encoder: VisionTransformer, batch: ImageTextBatch) -> dict[str, LossTerm]:
        """The loss within this rank's batch alone, and "retrieval_error": the share of pictures that have a caption of another
        nearer than their own. Pictures without a caption count in neither.

        Both depend on a device's batch size (chance is 1 - 1 / B): only runs of equal ones can be compared by them.
        """
        return self(encoder, batch, validates=True)

    @torch.no_grad()
    def encode_image(self, encoder: VisionTransformer, image_BCHW: Tensor) -> Tensor:
        """Pictures (normalised) in the common space: fp32, length 1; [B, P]."""
        return self._image(encoder, image_BCHW)

    @torch.no_grad()
    def encode_text(self, text_BL: Tensor, text_valid_BL: Tensor) -> Tensor:
        """Captions in the common space: fp32, length 1; [B, P]. Tokens as in `ImageTextBatch`, none without a valid one."""
        return self._text(text_BL, text_valid_BL)

    def _image(self, encoder: VisionTransformer, image_BCHW: Tensor) -> Tensor:
        return F.normalize(self.pool(encoder.forward_features(image_BCHW)).float(), dim=-1)

    def _text(self, text_BL: Tensor, text_valid_BL: Tensor) -> Tensor:
        return F.normalize(self.text_proj(self.text(text_BL, text_valid_BL)).float(), dim=-1)

    def flops(self, encoder: VisionTransformer, batch: ImageTextBatch, *, attention: Attention = "causal") -> Flops:
        """FLOPs of the forward pass, as `pretrain.flops` counts them; the batch is taken for the global one.

        "similarities" is keys, values and the one query's attention, both projections, and the similarities: B^2 of them, which
        CLIP takes twice (pictures with captions, captions with pictures; a rank's own rows alone) and SigLIP once.
        """
        samples, length = batch.text_BL.shape
        patches, width, text = samples * num_patches(encoder), encoder.embed_dim, self.config.text
        blocks, tower = stack_size(encoder.blocks, width), stack_size(self.text.blocks, text.embed_dim)
        pairs = length**2 if attention == "dense" else length * (length + 1) / 2
        pool = StackSize(width, 1, 2 * width**2)
        matrices = 2 if self.kind == "clip" else 1
        return Flops(
            patchifier=2 * patches * encoder.patch_embed.proj.weight.numel(),
            encoder=blocks.forward_flops(tokens=patches, pairs=patches * num_patches(encoder)),
            text_tower=tower.forward_flops(tokens=samples * length, pairs=samples * pairs),
            similarities=pool.forward_flops(tokens=patches, pairs=patches)
            + 2 * samples * self.config.proj_dim * (width + text.embed_dim)
            + matrices * 2 * samples**2 * self.config.proj_dim,
        )


def _check(config: ContrastiveConfig, *, kind: str, encoder_dim: int) -> None:
    """UserError for options that cannot be meant."""
    place, plain = "objective.contrastive", ContrastiveConfig()
    for name, reader in _ONLY.items():
        if kind != reader and getattr(config, name) != getattr(plain, name):
            raise UserError(f"{place}.{name} has no effect with objective.kind={kind}: leave it out")
    numbers = {f"{place}.text.{name}": value for name, value in vars(config.text).items()}
    numbers |= {f"{place}.{name}": getattr(config, name) for name in ("proj_dim", "pool_heads")}
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    if config.text.embed_dim % config.text.num_heads:
        raise UserError(
            f"{place}.text.num_heads={config.text.num_heads} must divide {place}.text.embed_dim={config.text.embed_dim}"
        )
    if encoder_dim % config.pool_heads:
        raise UserError(f"{place}.pool_heads={config.pool_heads} must divide the encoder's width of {encoder_dim}")
    if config.temperature is not None and config.temperature <= 0:
        raise UserError(f"{place}.temperature={config.temperature} must be above 0")
    first = 1 / (config.temperature or _TEMPERATURE[kind])
    if kind == "clip" and config.max_scale < first:
        raise UserError(
            f"{place}.max_scale={config.max_scale} is below the first scale, 1 / temperature = {first:.4g}: make it larger"
        )


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _check_batch(batch: ImageTextBatch) -> None:
    """UserError for batches that cannot be contrasted, on all ranks: one that stopped alone would leave the others waiting."""
    caption_B = batch.text_valid_BL.any(-1)
    here = torch.stack([(~caption_B).sum(), caption_B.new_tensor(len(batch), dtype=torch.long)])
    ranks = [here]
    if _world_size() > 1:
        ranks = [torch.empty_like(here) for _ in range(_world_size())]
        distributed.all_gather(ranks, here)
    missing, sizes = zip(*torch.stack(ranks).tolist(), strict=True)
    if any(missing):
        without = [batch.keys[row] for row in (~caption_B).nonzero().flatten().tolist()]
        named = f"sample {without[0]!r} has none" if without else "a sample of another process has none, which it names"
        raise UserError(
            f"data: contrastive objectives (clip, siglip) need a caption for every picture; {named}: give captions, or leave it "
            "out"
        )
    if len(set(sizes)) > 1:
        raise UserError(
            f"data.batch_size: contrastive objectives need batches of one size on all processes, not {sizes}"
        )
    if sum(sizes) == 1:
        raise UserError(
            "data.batch_size=1 gives a contrastive objective no negatives: take 2 at least, over all processes"
        )


@torch.no_grad()
def _num_missed(image_BP: Tensor, text_BP: Tensor) -> Tensor:
    """How many pictures have another's caption nearer than their own; the same words twice are equally near."""
    with torch.autocast(image_BP.device.type, enabled=False):
        similar_BB = image_BP @ text_BP.T
    return (similar_BB.amax(-1) > similar_BB.diagonal()).sum().float()
