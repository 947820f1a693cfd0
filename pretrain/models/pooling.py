"""Attention pooling: one vector for a picture from an encoder's tokens.

Shape letters: B batch, N patches, E encoder width, P the pooled vector's width.
"""

from timm.layers import AttentionPoolLatent
from torch import Tensor, nn


class AttentionPooling(nn.Module):
    """One learned query attends to all tokens with several heads; then a linear layer without bias.

    The attention is timm's, with the learned query used as it is and no biases: the layout of the head released with AIMv2's LiT
    models (reference, section 5: an attention-pool head with 1 query).

    Args:
        embed_dim: E.
        num_heads: heads of the attention; they must divide E.
        out_dim: P.
    """

    def __init__(self, embed_dim: int, *, num_heads: int, out_dim: int) -> None:
        super().__init__()
        self.attend = AttentionPoolLatent(
            embed_dim,
            out_features=0,  # no MLP, no projection of timm's
            num_heads=num_heads,
            qkv_bias=False,
            q_proj=False,
        )
        self.proj = nn.Linear(embed_dim, out_dim, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Keys and values xavier uniform as all matrices, the projection N(0, 1 / E) as CLIP's; the query is timm's, likewise."""
        nn.init.xavier_uniform_(self.attend.kv.weight)
        nn.init.normal_(self.proj.weight, std=self.proj.in_features**-0.5)

    def forward(self, tokens_BNE: Tensor) -> Tensor:
        """Pooled tokens, whatever their order; [B, P]."""
        return self.proj(self.attend(tokens_BNE))
