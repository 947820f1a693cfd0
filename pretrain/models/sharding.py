"""FSDP2: parameters, gradients and moments in shards over all ranks, gathered block by block where they are needed."""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from pretrain.models.recompute import transformer_blocks

#: Ways into a module other than `forward`: each gathers the weights too.
_FORWARD_METHODS = ("forward_features", "predict_patches", "generate", "encode_image", "encode_text")


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def shard(roots: Iterable[nn.Module], *, mesh: DeviceMesh, low_precision: bool) -> None:
    """Shard each root over `mesh`: one unit for each transformer block, one for what is left of the root.

    A root's own unit (embeddings, norms, heads) stays gathered from its forward pass to the end of the backward pass, so
    that losses may read a head's weight directly, as the vocabulary loss does.

    Mixed precision is autocast, as without shards. Here the blocks' weights are rounded to bf16 before they are gathered
    rather than after, which halves the traffic; gradients are summed in fp32. The one difference in numbers: norms and
    biases of blocks, which autocast leaves in fp32, are rounded too.

    Args:
        roots: modules that hold no part of each other, every parameter on every rank.
        mesh: one dimension, all ranks.
        low_precision: training in bf16.
    """
    policy = MixedPrecisionPolicy()
    if low_precision:
        # inputs are left alone: the residual stream stays in fp32, as under autocast
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for root in roots:
        for block in transformer_blocks(root):
            _place(block, mesh)
            fully_shard(block, mesh=mesh, mp_policy=policy)
        _place(root, mesh)
        fully_shard(root, mesh=mesh)
        for name in _FORWARD_METHODS:
            if hasattr(root, name):
                register_fsdp_forward_method(root, name)


def _place(module: nn.Module, mesh: DeviceMesh) -> None:
    """Move what is not sharded yet to the mesh's device, with the first rank's values, as DDP does."""
    for parameter in module.parameters():
        if not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(mesh.device_type)
            distributed.broadcast(parameter.data, group=mesh.get_group(), group_src=0)


def gather(tensors: dict[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU, one by one, where `keep`, nothing elsewhere; every rank takes part."""
    whole = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            whole[name] = full.detach().cpu()
    return whole


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of `whole`, where `like` is a shard; each rank cuts it out of its own copy."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
