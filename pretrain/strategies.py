"""`--trainer.strategy=fsdp2`: Lightning's FSDP2 strategy, over all devices, with checkpoints that any strategy loads."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry

from pretrain.models.sharding import gather, shard_like


class FSDP2Strategy(ModelParallelStrategy):
    """Shards over all devices of all nodes; a checkpoint is one file, the same that one process writes and reads.

    Lightning's own (2.6.6) takes the numbers in an optimiser's state for the model's order of parameters; torch counts in
    the order of parameter groups, so that with two groups the moments of another strategy's checkpoint would go to the
    wrong parameters. Here torch's numbers are written and read.

    Args:
        process_group_backend: the device's own where not given.
        timeout: after which a collective operation fails.
    """

    strategy_name = "fsdp2"

    def __init__(
        self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(
            data_parallel_size=1,  # not known yet
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: lightning.Trainer) -> None:
        # weights gathered in inference mode could not be used by the training step that follows
        trainer.fit_loop.epoch_loop.val_loop.inference_mode = trainer.validate_loop.inference_mode = False
        super().setup(trainer)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """All weights on rank 0, nothing elsewhere; every rank takes part."""
        return gather(self.model.state_dict(), keep=self.is_global_zero)

    def optimizer_state(self, optimizer: torch.optim.Optimizer | LightningOptimizer) -> dict[str, Any]:
        """All moments on rank 0, nothing elsewhere; every rank takes part."""
        state = (optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()
        whole = {number: gather(tensors, keep=self.is_global_zero) for number, tensors in state["state"].items()}
        return {"state": whole, "param_groups": state["param_groups"]} if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = True) -> dict[str, Any]:
        # mapped, not read: a rank touches no more than its own part
        return torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        like, saved = self.model.state_dict(), checkpoint["state_dict"]
        parts = {name: shard_like(whole, like[name]) if name in like else whole for name, whole in saved.items()}
        self.model.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            state = {
                number: {
                    key: value if key == "step" else shard_like(value, parameter)
                    for key, value in saved["state"][number].items()
                }
                for number, parameter in zip(numbers, parameters, strict=True)
                if number in saved["state"]
            }
            optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


StrategyRegistry.register(FSDP2Strategy.strategy_name, FSDP2Strategy, description="FSDP2 over all devices")
