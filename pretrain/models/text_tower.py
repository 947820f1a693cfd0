"""The text tower of contrastive objectives: a causal transformer over a caption, pooled at its EOS.

Shape letters: B batch, L text, D width.
"""

import torch
from torch import Tensor, nn

from pretrain.models.decoder import DecoderBlock
from pretrain.models.norm import RMSNorm
from pretrain.models.vision import init_published
from pretrain.types import CONTEXT_LENGTH


class TextTower(nn.Module):
    """Causal transformer over token ids; a caption is what its EOS holds after the final norm.

    Its blocks are the decoder's own (pre-norm, RMSNorm, causal attention, SwiGLU, no biases): the tower released with AIMv2's
    LiT models is built of the same kind, 12 x 768, 6 heads, FFN 2048 (reference, section 5). Captions carry no BOS here, as
    everywhere in this suite, where CLIP's own have one.

    Args:
        vocab_size: of the captions' tokenizer.
        embed_dim: D.
        depth: number of blocks.
        num_heads: attention heads; they must divide D.
        mlp_hidden_dim: hidden width of SwiGLU.
        context_length: longest caption in tokens, EOS included.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_hidden_dim: int,
        context_length: int = CONTEXT_LENGTH,
    ) -> None:
        super().__init__()
        self.embed_dim, self.mlp_hidden_dim, self.context_length = embed_dim, mlp_hidden_dim, context_length
        self.token_embed = nn.Embedding(vocab_size, embed_dim)
        self.pos_embed = nn.Parameter(torch.empty(1, context_length, embed_dim))
        self.blocks = nn.ModuleList(
            DecoderBlock(embed_dim, num_heads=num_heads, mlp_hidden_dim=mlp_hidden_dim) for _ in range(depth)
        )
        self.norm = RMSNorm(embed_dim, eps=1e-5)
        init_published(self)

    def forward(self, text_BL: Tensor, text_valid_BL: Tensor) -> Tensor:
        """The state at each caption's last valid token, which is its EOS; [B, D].

        Padding stands behind the caption, so that causal attention alone keeps it from every valid position.

        Args:
            text_BL: int64 token ids, EOS included; L at most the context length.
            text_valid_BL: True on tokens up to and with the EOS, of which each row has one at least.
        """
        length = text_BL.shape[1]
        assert length <= self.context_length, f"{length} tokens exceed the context of {self.context_length}"
        x_BLD = self.token_embed(text_BL) + self.pos_embed[:, :length]
        for block in self.blocks:
            x_BLD, _ = block(x_BLD)
        # not the position of the largest id, as CLIP looks for its EOS: other tokenizers' EOS is not their last id
        eos_B = text_valid_BL.sum(-1) - 1
        rows_B = torch.arange(len(text_BL), device=text_BL.device)
        return self.norm(x_BLD[rows_B, eos_B])
