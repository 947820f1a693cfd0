"""The multimodal decoder: one causal transformer over [image tokens ; BOS ; text tokens].

Shape letters: B batch, N patches, L text, S = N + L sequence, E encoder width, D width, H heads, K head width,
V vocabulary, P patch pixels (3 * patch_size ** 2), M selected rows.
"""

import logging
from dataclasses import dataclass

import torch
from timm.layers import SwiGLU
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.models.generation import Cache, Generators, Search, generate
from pretrain.models.norm import RMSNorm
from pretrain.models.sizes import swiglu_hidden_dim
from pretrain.models.vision import init_published
from pretrain.types import CONTEXT_LENGTH, UserError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecoderConfig:
    """Size of the decoder: by numbers (`embed_dim`, `num_heads`) or by `ratio`. Published: 1024 wide, 12 deep, 8 heads.

    Attributes:
        embed_dim: width in features.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_hidden_dim: hidden width of SwiGLU; 8/3 of the width, rounded up, where not given.
        ratio: decoder-block parameters / encoder-block parameters, e.g. 0.25; depth and head width stay as given.
        head_dim: width of one head, with `ratio`.
    """

    embed_dim: int | None = None
    depth: int = 12
    num_heads: int | None = None
    mlp_hidden_dim: int | None = None
    ratio: float | None = None
    head_dim: int = 64

    def resolve(self, encoder: VisionTransformer) -> tuple[int, int, int, int]:
        """Width, depth, heads and hidden width.

        Raises:
            UserError: not exactly one of `embed_dim` and `ratio`; widths that do not divide; no width within 10% of the ratio.
        """
        if (self.embed_dim is None) == (self.ratio is None):
            raise UserError(
                f"decoder: give exactly one of decoder.embed_dim (is {self.embed_dim}) and decoder.ratio (is {self.ratio})"
            )
        if self.depth < 1:
            raise UserError(f"decoder.depth={self.depth} must be at least 1")
        if self.ratio is not None:
            return self._from_ratio(sum(p.numel() for p in encoder.blocks.parameters()))
        if self.num_heads is None or self.embed_dim % self.num_heads:
            raise UserError(f"decoder.num_heads={self.num_heads} must divide decoder.embed_dim={self.embed_dim}")
        return self.embed_dim, self.depth, self.num_heads, self.mlp_hidden_dim or swiglu_hidden_dim(self.embed_dim)

    def _from_ratio(self, encoder_params: int) -> tuple[int, int, int, int]:
        if self.num_heads is not None or self.mlp_hidden_dim is not None:
            raise UserError(
                "decoder.ratio chooses width, heads and hidden width: leave num_heads and mlp_hidden_dim out"
            )
        target = self.ratio * encoder_params

        def error(heads: int) -> float:
            width = heads * self.head_dim
            return abs(block_params(width, swiglu_hidden_dim(width)) * self.depth / target - 1)

        heads = min(range(1, 257), key=error)
        width, hidden = heads * self.head_dim, swiglu_hidden_dim(heads * self.head_dim)
        found = block_params(width, hidden) * self.depth / encoder_params
        if error(heads) > 0.1:
            raise UserError(
                f"decoder.ratio={self.ratio}: nearest is {found:.3f} (width {width}, depth {self.depth}, {heads} heads of "
                f"{self.head_dim}), more than 10% off; change decoder.depth or decoder.head_dim"
            )
        _log.info(
            "decoder.ratio=%s: width %d, depth %d, heads %d (ratio %.3f)", self.ratio, width, self.depth, heads, found
        )
        return width, self.depth, heads, hidden


def block_params(embed_dim: int, mlp_hidden_dim: int) -> int:
    """Parameters of one block: attention 4 D^2, SwiGLU 3 D F, two norms."""
    return 4 * embed_dim**2 + 3 * embed_dim * mlp_hidden_dim + 2 * embed_dim


class CausalAttention(nn.Module):
    """Causal self-attention without biases, with an optional cache of keys and values."""

    def __init__(self, embed_dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.fused_attn = True  # timm's name for it; see `attention.choose_fused_attention`
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.proj = nn.Linear(embed_dim, embed_dim, bias=False)

    def forward(self, x_BSD: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        batch, length, width = x_BSD.shape
        qkv = self.qkv(x_BSD).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q_BHSK, k_BHSK, v_BHSK = qkv.unbind(0)
        if cache is not None:
            k_BHSK, v_BHSK = torch.cat([cache[0], k_BHSK], dim=2), torch.cat([cache[1], v_BHSK], dim=2)
            assert length == 1, (
                "a cached step is one token: is_causal aligns to the top left and would be wrong for more"
            )
        if self.fused_attn:
            out_BHSK = F.scaled_dot_product_attention(q_BHSK, k_BHSK, v_BHSK, is_causal=cache is None)
        else:
            scores_BHSS = (q_BHSK * q_BHSK.shape[-1] ** -0.5) @ k_BHSK.transpose(-2, -1)
            if cache is None:
                future_SS = torch.ones(length, length, dtype=torch.bool, device=x_BSD.device).triu(1)
                scores_BHSS = scores_BHSS.masked_fill(future_SS, float("-inf"))
            out_BHSK = scores_BHSS.softmax(-1) @ v_BHSK
        # generation takes no gradient; an output with one would be hooked by FSDP2, which does not like views
        cache = k_BHSK.detach(), v_BHSK.detach()
        return self.proj(out_BHSK.transpose(1, 2).reshape(batch, length, width)), cache


class DecoderBlock(nn.Module):
    """Pre-norm block: RMSNorm, causal attention, RMSNorm, SwiGLU; no biases."""

    def __init__(self, embed_dim: int, *, num_heads: int, mlp_hidden_dim: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(embed_dim, eps=1e-5)
        self.attn = CausalAttention(embed_dim, num_heads=num_heads)
        self.norm2 = RMSNorm(embed_dim, eps=1e-5)
        self.mlp = SwiGLU(embed_dim, mlp_hidden_dim, bias=False)

    def forward(self, x_BSD: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        attended, cache = self.attn(self.norm1(x_BSD), cache)
        x_BSD = x_BSD + attended
        return x_BSD + self.mlp(self.norm2(x_BSD)), cache


class Decoder(nn.Module):
    """Causal decoder over [image tokens ; BOS ; text tokens].

    Image tokens are the encoder's outputs through one linear layer and get no new positions; BOS is a learned vector; text
    gets learned positions (77 + BOS, as ml-l3m). Position k of the image predicts patch k + 1, BOS predicts the first
    text token, the last image position predicts nothing.

    Args:
        encoder_dim: E.
        embed_dim: D.
        depth: number of blocks.
        num_heads: H.
        mlp_hidden_dim: hidden width of SwiGLU.
        vocab_size: V, or None for a decoder of pixels alone.
        patch_pixels: P, or None for a decoder of text alone.
        context_length: longest caption in tokens, EOS included.
        masks: whether captions can be predicted in parallel too, from a learned mask token in place of each input.
    """

    def __init__(
        self,
        encoder_dim: int,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_hidden_dim: int,
        vocab_size: int | None,
        patch_pixels: int | None,
        context_length: int = CONTEXT_LENGTH,
        masks: bool = False,
    ) -> None:
        super().__init__()
        self.image_proj = nn.Linear(encoder_dim, embed_dim, bias=False)
        self.blocks = nn.ModuleList(
            DecoderBlock(embed_dim, num_heads=num_heads, mlp_hidden_dim=mlp_hidden_dim) for _ in range(depth)
        )
        self.norm = RMSNorm(embed_dim, eps=1e-5)
        self.context_length = context_length
        self.token_embed = self.text_head = self.pixel_head = None
        if vocab_size is not None:
            self.token_embed = nn.Embedding(vocab_size, embed_dim)
            self.bos = nn.Parameter(torch.empty(1, 1, embed_dim))
            self.pos_embed = nn.Parameter(torch.empty(1, context_length + 1, embed_dim))
            self.text_head = nn.Linear(embed_dim, vocab_size, bias=False)
            # no such parameter where it has no use: it would never get a gradient
            self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if masks else None
        if patch_pixels is not None:
            self.pixel_head = nn.Linear(embed_dim, patch_pixels, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Published initialisation; heads by fan-in, scaled with depth: std = (2 * depth * D) ** -0.5.

        The reference (section 4) says "heads fan-in depth-scaled"; the factor 2, two residual branches a block, is ours.
        """
        init_published(self)
        std = (2 * len(self.blocks) * self.image_proj.out_features) ** -0.5
        for head in (self.text_head, self.pixel_head):
            if head is not None:
                nn.init.normal_(head.weight, std=std)

    def embed_text(self, text_BL: Tensor, masked_B: Tensor | None = None) -> Tensor:
        """Inputs that predict `text_BL`: BOS, then all tokens but the last, with positions; [B, L, D].

        Args:
            text_BL: the tokens to predict.
            masked_B: True for captions whose inputs are the mask token everywhere; none where not given.
        """
        batch, length = text_BL.shape
        assert length <= self.context_length, f"{length} tokens exceed the context of {self.context_length}"
        inputs_BLD = torch.cat([self.bos.expand(batch, -1, -1), self.token_embed(text_BL[:, :-1])], dim=1)
        if masked_B is not None:
            inputs_BLD = torch.where(masked_B[:, None, None], self.mask_token, inputs_BLD)
        return inputs_BLD + self.pos_embed[:, :length]

    def forward(self, image_BNE: Tensor, text_BL: Tensor | None = None, masked_B: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm, in front of the heads.

        Padding stands behind the caption, so that causal attention alone keeps it from every valid position.

        Args:
            image_BNE: the encoder's tokens.
            text_BL: the tokens to predict, EOS included; None for pixels alone.
            masked_B: as :meth:`embed_text`'s.

        Returns:
            hidden_BSD: [B, N + L, D]; position N + l predicts `text_BL[:, l]`, position k < N - 1 predicts patch k + 1.
        """
        x_BSD = self.image_proj(image_BNE)
        if text_BL is not None:
            x_BSD = torch.cat([x_BSD, self.embed_text(text_BL, masked_B).to(x_BSD.dtype)], dim=1)
        for block in self.blocks:
            x_BSD, _ = block(x_BSD)
        return self.norm(x_BSD)

    @torch.no_grad()
    def generate(
        self,
        image_BNE: Tensor,
        prompt_BL: Tensor | None = None,
        *,
        eos_id: int,
        prompt_length_B: Tensor | None = None,
        max_tokens: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        temperature: float = 0.0,
        top_k: int | None = None,
        generator: Generators = None,
        use_cache: bool = True,
    ) -> Tensor:
        """Caption tokens; see :func:`pretrain.models.generation.generate`.

        Args:
            image_BNE: the encoder's tokens.
            prompt_BL: int64 tokens that the caption begins with.
            eos_id: where a caption ends; behind it the output is filled with `eos_id`.
            prompt_length_B: int64, tokens of each row's prompt; all of `prompt_BL` where not given.
            max_tokens: most tokens, the prompt included; the context length where not given.
            max_new_tokens: most tokens behind each prompt.
            num_beams: above 1 is beam search.
            length_penalty: a finished beam's log likelihood is divided by its length ** this.
            temperature: 0 takes the most likely token.
            top_k: sample among the k most likely tokens.
            generator: for sampling; one, or one for each row.
            use_cache: keep keys and values, so that each step runs one token through the blocks; the same tokens without.

        Returns:
            int64 [B, T], T <= `max_tokens`, the prompt included.

        Raises:
            UserError: numbers that cannot be meant.
        """
        return generate(
            self,
            image_BNE,
            prompt_BL,
            prompt_length_B=prompt_length_B,
            eos_id=eos_id,
            max_tokens=max_tokens,
            max_new_tokens=max_new_tokens,
            search=Search(num_beams, length_penalty, temperature, top_k),
            generator=generator,
            use_cache=use_cache,
        )
