"""A light grounding head: patch tokens, text tokens and a learned token in a few layers; the learned token regresses one box.

The design is TransVG's (Deng et al. 2021, "End-to-End Visual Grounding with Transformers", section 3) without its trained
backbones: both encoders are frozen here, so that what is compared is what an encoder's patches know.

Shape letters: B sentences, N patches, L text tokens, T = 1 + L + N tokens, D width of the head, H heads, K head width (D / H),
V width of the encoder's tokens, E width of the text's.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou_loss

from evals.grounding.light_config import LightHeadConfig
from evals.probe.heads import FeatureNorm
from pretrain.files import write_atomically
from pretrain.types import UserError

#: Length of the picture's sides for the sine positions, in radians of the fastest sine: about two periods.
_POSITION_SPAN = 12
_STD, _TINY = 0.02, 1e-4


class ReadOut(nn.Module):
    """The last layer, of the learned token alone: a pre-norm transformer layer whose other outputs nobody would read.

    Args:
        config: sizes.
    """

    def __init__(self, config: LightHeadConfig) -> None:
        super().__init__()
        width, self.num_heads, head_dim = config.embed_dim, config.num_heads, config.embed_dim // config.num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.q_norm, self.k_norm = nn.LayerNorm(head_dim), nn.LayerNorm(head_dim)
        self.proj, self.drop = nn.Linear(width, width), nn.Dropout(config.dropout)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), drop=config.dropout)

    def forward(self, x_BTD: Tensor, attend_B11T: Tensor) -> tuple[Tensor, Tensor]:
        """The learned token, which is the first: [B, D]; and how much it looked at each token, mean over heads: [B, T]."""
        y_BTD = self.norm1(x_BTD)
        query_BH1K = self.q(y_BTD[:, :1]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key_BHTK, value_BHTK = self.kv(y_BTD).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query_BH1K, key_BHTK = self.q_norm(query_BH1K), self.k_norm(key_BHTK)
        scores_BH1T = (query_BH1K * query_BH1K.shape[-1] ** -0.5) @ key_BHTK.transpose(-2, -1)
        weight_BH1T = scores_BH1T.float().masked_fill(~attend_B11T, -math.inf).softmax(-1)
        seen_B1D = (weight_BH1T.to(value_BHTK.dtype) @ value_BHTK).transpose(1, 2).flatten(2)
        token_B1D = x_BTD[:, :1] + self.drop(self.proj(seen_B1D))
        token_B1D = token_B1D + self.mlp(self.norm2(token_B1D))
        return token_B1D[:, 0], weight_BH1T.mean(1)[:, 0]


class LightGroundingHead(nn.Module):
    """Patch tokens and text tokens to one box each.

    Patch tokens are normalised by their statistics over the training batches (encoders differ in scale), projected, and given
    2-D sine positions; text tokens are normalised one by one, projected, and given a type. They and a learned token, which starts
    with the mean of the text, go through pre-norm layers with normalised queries and keys. The box is a three-layer perceptron
    on the learned token and a sigmoid, as DETR has it. Its centre counts from where the token looks in the last layer: the mean
    place of the patches under its attention (a reference point, as in Deformable DETR, Zhu et al. 2021). Without that, a token
    that looks everywhere learns nothing about places, and one that knows nothing about places does not learn where to look: on
    scenes, with a random encoder, 2,400 steps did not lead away from the best constant box; with it, 300 do.

    Args:
        token_dim: V.
        text_dim: E.
        grid: rows and columns of patches.
        config: sizes.
    """

    def __init__(self, token_dim: int, text_dim: int, grid: tuple[int, int], config: LightHeadConfig) -> None:
        super().__init__()
        config.check()
        self.token_dim, self.text_dim, self.grid, self.config = token_dim, text_dim, tuple(grid), config
        width, dropout = config.embed_dim, {"proj_drop": config.dropout, "attn_drop": config.dropout}
        self.token_norm, self.token_proj = FeatureNorm(token_dim), nn.Linear(token_dim, width)
        self.text_norm, self.text_proj = nn.LayerNorm(text_dim), nn.Linear(text_dim, width)
        self.query = nn.Parameter(_STD * torch.randn(width))
        self.token_type = nn.Parameter(_STD * torch.randn(width))
        self.text_type = nn.Parameter(_STD * torch.randn(width))
        self.register_buffer("position_ND", grid_positions(self.grid, width), persistent=False)
        self.register_buffer("centre_N2", patch_centres(self.grid), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_ratio, qkv_bias=True, qk_norm=True, **dropout)
            for _ in range(config.depth - 1)
        )
        self.read_out = ReadOut(config)
        self.norm = nn.LayerNorm(width)
        self.box = nn.Sequential(
            *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
        )

    def forward(self, tokens_BNV: Tensor, text_BLE: Tensor, valid_BL: Tensor) -> Tensor:
        """Boxes [B, 4]: centre x, centre y, width and height in shares of the picture's sides.

        Args:
            tokens_BNV: float, patches row by row from the top left corner.
            text_BLE: float; what stands where there is no token does not matter, as long as it is finite.
            valid_BL: bool, where there is one; at least one in each row.
        """
        patches_BND = self.token_proj(self.token_norm(tokens_BNV)) + self.position_ND + self.token_type
        words_BLD = self.text_proj(self.text_norm(text_BLE)) + self.text_type
        share_BL1 = (valid_BL / valid_BL.sum(1, keepdim=True))[..., None]
        # padding has no share, whatever stands there
        told_B1D = (share_BL1 * words_BLD.masked_fill(~valid_BL[..., None], 0)).sum(1, keepdim=True)
        x_BTD = torch.cat([(self.query + told_B1D).to(patches_BND.dtype), words_BLD, patches_BND], dim=1)
        attend_B11T = F.pad(valid_BL, (1, patches_BND.shape[1]), value=True)[:, None, None, :]
        for block in self.blocks:
            x_BTD = block(x_BTD, attn_mask=attend_B11T)
        token_BD, weight_BT = self.read_out(x_BTD, attend_B11T)
        weight_BN = weight_BT[:, -len(self.centre_N2) :]
        reference_B2 = weight_BN @ self.centre_N2 / weight_BN.sum(1, keepdim=True).clamp_min(_TINY)
        offset_B4 = self.box(self.norm(token_BD)).float()
        centre_B2 = offset_B4[:, :2] + torch.logit(reference_B2.float(), eps=_TINY)
        return torch.cat([centre_B2, offset_B4[:, 2:]], dim=1).sigmoid()


def patch_centres(grid: tuple[int, int]) -> Tensor:
    """Centres of the patches, x and y in shares of the picture's sides: float32 [rows * columns, 2]."""
    rows, columns = grid
    y_RC, x_RC = torch.meshgrid(
        (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij"
    )
    return torch.stack([x_RC, y_RC], dim=-1).flatten(0, 1)


def grid_positions(grid: tuple[int, int], width: int) -> Tensor:
    """2-D sine positions of the patches' centres, float32 [rows * columns, width].

    The same place has the same position whatever the number of patches, as with DETR's normalised positions; frequencies fall
    geometrically from the fastest, to a thousandth of it.
    """
    num = width // 4  # timm's build_sincos2d_pos_embed knows whole steps only
    bands = 1000.0 ** -(torch.arange(num, dtype=torch.float32) / num)
    x_NB, y_NB = (_POSITION_SPAN * patch_centres(grid).T)[..., None] * bands
    return torch.cat([y_NB.sin(), y_NB.cos(), x_NB.sin(), x_NB.cos()], dim=1)


def box_loss(
    box_B4: Tensor, target_B4: Tensor, *, l1_weight: float, giou_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of boxes as (centre x, centre y, width, height) in shares, means over the batch.

    As DETR has it: L1 is the sum over the four numbers, GIoU is of the corners.

    Returns:
        The weighted sum, L1, and 1 - GIoU.
    """
    l1 = F.l1_loss(box_B4, target_B4, reduction="none").sum(1).mean()
    corners_B4, wanted_B4 = (box_convert(box, "cxcywh", "xyxy") for box in (box_B4, target_B4))
    giou = generalized_box_iou_loss(corners_B4, wanted_B4, reduction="mean")
    return l1_weight * l1 + giou_weight * giou, l1, giou


def save_light_head(head: LightGroundingHead, path: str | Path, *, about: dict[str, str]) -> None:
    """Write a head as safetensors; its sizes and `about` (encoder, text encoder, data set) travel along."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    sizes = {"token_dim": head.token_dim, "text_dim": head.text_dim, "grid": list(head.grid)}
    content = {**sizes, "head": asdict(head.config), "about": about}
    write_atomically(path, save(tensors, metadata={"light_head": json.dumps(content)}))


def load_light_head(path: str | Path) -> LightGroundingHead:
    """A head that :func:`save_light_head` wrote, in evaluation mode; `head.about` says what it was trained on.

    Raises:
        UserError: no such file, or one that is no such head.
    """
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {})["light_head"])
        config = LightHeadConfig(**content["head"])
        head = LightGroundingHead(content["token_dim"], content["text_dim"], tuple(content["grid"]), config)
        head.load_state_dict(load_file(path))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} is no light grounding head (give a head.safetensors of one): {error}") from error
    head.about = content["about"]
    return head.eval().requires_grad_(False)
