"""Probe heads: attention pooling and a linear read-out, one at a time and a whole grid of settings in one computation.

Shape letters: B batch, T tokens, D width, G settings, Q queries, H heads, K head width (D / H), C classes.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.files import write_atomically
from pretrain.types import UserError


@dataclass(frozen=True)
class HeadConfig:
    """A head; the defaults are the released code's (reference, section 6; whether AIMv2's had the norm is not stated).

    Attributes:
        kind: "attentive" pools the tokens with learned queries; "linear" reads one vector a picture.
        num_heads: attention heads; must divide the encoder's width.
        num_queries: learned queries, whose results are averaged.
        batch_norm: normalise features by their statistics over the batch, without learned scale and shift.
    """

    kind: Literal["attentive", "linear"] = "attentive"
    num_heads: int = 8
    num_queries: int = 1
    batch_norm: bool = True

    def check(self, embed_dim: int) -> None:
        """Raise UserError for a head that does not fit features of this width."""
        if self.kind == "attentive" and (self.num_heads < 1 or embed_dim % self.num_heads):
            raise UserError(f"head.num_heads={self.num_heads} must divide the encoder's width {embed_dim}")
        if self.num_queries < 1:
            raise UserError(f"head.num_queries={self.num_queries} must be at least 1")


class FeatureNorm(nn.Module):
    """Batch norm without scale and shift over the last axis: statistics over all others, running ones in evaluation."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(embed_dim, affine=False, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, -2)).view_as(x)


class AttentiveHead(nn.Module):
    """Attention pooling and a linear classifier: learned queries attend over the tokens, keys and values are linear in them.

    Args:
        embed_dim: D.
        num_classes: C.
        config: kind is "attentive".
    """

    def __init__(self, embed_dim: int, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        config.check(embed_dim)
        self.config = config
        self.norm = FeatureNorm(embed_dim) if config.batch_norm else nn.Identity()
        self.query = nn.Parameter(0.02 * torch.randn(config.num_queries, embed_dim))
        self.key = nn.Linear(embed_dim, embed_dim, bias=False)
        self.value = nn.Linear(embed_dim, embed_dim, bias=False)
        self.classifier = nn.Linear(embed_dim, num_classes)

    def _split(self, x: Tensor) -> Tensor:
        """[..., T, D] to [..., H, T, K]."""
        return x.unflatten(-1, (self.config.num_heads, -1)).transpose(-3, -2)

    def attention(self, tokens_BTD: Tensor) -> Tensor:
        """How much each head looks at each token, mean over queries: [B, H, T], each row adds up to 1."""
        key_BHTK = self._split(self.key(self.norm(tokens_BTD)))
        query_HQK = self._split(self.query)
        scores_BHQT = query_HQK * query_HQK.shape[-1] ** -0.5 @ key_BHTK.transpose(-2, -1)
        return scores_BHQT.softmax(-1).mean(2)

    def pool(self, tokens_BTD: Tensor) -> Tensor:
        """The pooled vector: [B, D]."""
        x_BTD = self.norm(tokens_BTD)
        key_BHTK, value_BHTK = self._split(self.key(x_BTD)), self._split(self.value(x_BTD))
        query_BHQK = self._split(self.query).expand(len(x_BTD), -1, -1, -1)
        out_BHQK = F.scaled_dot_product_attention(query_BHQK, key_BHTK, value_BHTK)
        return out_BHQK.transpose(1, 2).flatten(2).mean(1)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Logits [B, C]."""
        return self.classifier(self.pool(tokens_BTD))


class LinearHead(nn.Module):
    """A linear classifier on one vector a picture."""

    def __init__(self, embed_dim: int, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = FeatureNorm(embed_dim) if config.batch_norm else nn.Identity()
        self.classifier = nn.Linear(embed_dim, num_classes)

    def forward(self, summary_BD: Tensor) -> Tensor:
        """Logits [B, C]."""
        return self.classifier(self.norm(summary_BD))


def build_head(embed_dim: int, num_classes: int, config: HeadConfig) -> nn.Module:
    """One head with fresh weights from torch's generator."""
    kind = AttentiveHead if config.kind == "attentive" else LinearHead
    return kind(embed_dim, num_classes, config)


class HeadGrid(nn.Module):
    """G heads that start alike and are trained apart, in one computation; the features' norm, which has no weights, is shared.

    Attention needs no keys and values of its own here. With k = W x, a query's score q . k = (W' q) . x, so each head's query
    is folded into one vector of width D; and the mean of values under attention is W applied to the mean of tokens. That is
    D / K times less work a token than keys and values for every setting.

    Args:
        embed_dim: D, width of tokens or of the summary.
        num_classes: C.
        config: of each head.
        num_settings: G.
    """

    def __init__(self, embed_dim: int, num_classes: int, config: HeadConfig, *, num_settings: int) -> None:
        super().__init__()
        self.config, self.embed_dim, self.num_classes = config, embed_dim, num_classes
        first = build_head(embed_dim, num_classes, config)
        self.norm = first.norm
        self.heads = nn.ModuleList(build_head(embed_dim, num_classes, config) for _ in range(num_settings))
        for head in self.heads:
            head.load_state_dict(first.state_dict())
            head.norm = nn.Identity()  # shared

    def _stacked(self, name: str) -> Tensor:
        return torch.stack([head.get_parameter(name) for head in self.heads])

    def _classify(self, pooled_GBD: Tensor) -> Tensor:
        weight_GCD, bias_GC = self._stacked("classifier.weight"), self._stacked("classifier.bias")
        return torch.baddbmm(bias_GC[:, None], pooled_GBD, weight_GCD.transpose(1, 2))

    def forward(self, features: Tensor) -> Tensor:
        """Logits [G, B, C] from tokens [B, T, D], or from summaries [B, D] for linear heads."""
        x = self.norm(features)
        if self.config.kind == "linear":
            return self._classify(x.expand(len(self.heads), -1, -1))
        groups, heads, width = len(self.heads), self.config.num_heads, self.embed_dim // self.config.num_heads
        query_GQHK = self._stacked("query").view(groups, -1, heads, width)
        key_GHKD = self._stacked("key.weight").view(groups, heads, width, -1)
        folded_GQHD = torch.einsum("gqhk,ghkd->gqhd", query_GQHK * width**-0.5, key_GHKD)
        # as one matrix, so that tokens are read once for all settings
        scores_BTS = x @ folded_GQHD.flatten(0, 2).t()
        attend_BST = scores_BTS.transpose(1, 2).softmax(-1)
        # values are linear in the mean over queries, so it is taken first
        attend_BST = attend_BST.unflatten(1, (groups, -1, heads)).mean(2).flatten(1, 2)
        mean_GBHD = (attend_BST @ x).unflatten(1, (groups, heads)).transpose(0, 1)
        value_GHKD = self._stacked("value.weight").view(groups, heads, width, -1)
        pooled_GBHK = torch.einsum("gbhd,ghkd->gbhk", mean_GBHD, value_GHKD)
        return self._classify(pooled_GBHK.flatten(2))

    @torch.no_grad()
    def head(self, setting: int) -> nn.Module:
        """A copy of one setting's head that stands alone, with the norm's statistics."""
        alone = build_head(self.embed_dim, self.num_classes, self.config)
        state = dict(self.heads[setting].state_dict())
        alone.load_state_dict(state | {f"norm.{name}": value for name, value in self.norm.state_dict().items()})
        return alone.to(self.heads[setting].classifier.weight.device).train(self.training)


def save_head(head: nn.Module, path: str | Path, *, classes: list[str]) -> None:
    """Write one head as safetensors; its settings and class names travel along."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    about = {"embed_dim": head.classifier.in_features, "head": asdict(head.config), "classes": classes}
    write_atomically(path, save(tensors, metadata={"probe": json.dumps(about)}))


def load_head(path: str | Path) -> nn.Module:
    """A head that :func:`save_head` wrote, in evaluation mode; `head.classes` are its class names.

    Raises:
        UserError: no such file, or one that is no head.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["probe"])
        head = build_head(about["embed_dim"], len(about["classes"]), HeadConfig(**about["head"]))
        head.load_state_dict(load_file(path))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{path} is no probe's head (give a head.safetensors that an evaluation wrote): {error}"
        ) from error
    head.classes = about["classes"]
    return head.eval().requires_grad_(False)
