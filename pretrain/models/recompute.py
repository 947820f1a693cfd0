"""Activation checkpointing: a block keeps its input alone and runs again in the backward pass."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def transformer_blocks(root: nn.Module) -> list[nn.Module]:
    """The blocks of every transformer in `root`, in order: whatever a module holds in a list named `blocks`, as timm's
    ViT and the decoder do."""
    lists = (getattr(module, "blocks", None) for module in root.modules())
    return [block for blocks in lists if isinstance(blocks, nn.ModuleList | nn.Sequential) for block in blocks]


def recompute_blocks(root: nn.Module) -> None:
    """Let every transformer block of `root` recompute its activations in the backward pass.

    timm's own switch is passed over where an attention mask is given. `forward` is replaced rather than the module
    wrapped: parameters keep their names, and FSDP2's hooks, which run around `forward`, stay outside: the block's
    weights are gathered before it runs again.
    """
    for block in transformer_blocks(root):
        block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    # a function: torch.compile would pass over a block whose `forward` is a partial
    def run(*args: Any, **options: Any) -> Any:
        # no block draws random numbers (`build_encoder` refuses dropout), so no random state is kept
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **options)

    return run
