"""The end of a run: export, runs/latest, and one screen that says what was trained, how fast, how good, and where it lies."""

import json
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.panel import Panel

from pretrain.callbacks.baselines import Baselines
from pretrain.callbacks.compute import training_flops
from pretrain.callbacks.throughput import Throughput
from pretrain.data.datamodule import global_batch_size
from pretrain.data.terminal import output_console, summary_grid
from pretrain.export import export_module
from pretrain.files import write_atomically
from pretrain.memory import TOLERANCE, Step, device_bytes, estimate_memory, show_bytes
from pretrain.models.sharding import is_sharded
from pretrain.module import PretrainModule
from pretrain.run import point_latest


def count_params(module: Any) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} M"


def find_callback(trainer: lightning.Trainer, kind: type[Callback]) -> Any:
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)


def whole_module(trainer: lightning.Trainer, pl_module: PretrainModule) -> PretrainModule:
    """The module with all its weights on the first process: where they lie in shards, a copy; every rank takes part."""
    if not is_sharded(pl_module.encoder):
        return pl_module
    weights = trainer.strategy.lightning_module_state_dict()
    whole = PretrainModule(pl_module.encoder_config, pl_module.objective_config, pl_module.optim_config)
    if trainer.is_global_zero:
        whole.build(trainer.datamodule.tokenizer.vocab_size)
        whole.load_state_dict(weights)
    return whole


class RunSummary(Callback):
    """Exports the model, points runs/latest to the run, writes summary.json and prints it."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._validated_at = -1

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data, step = trainer.datamodule, trainer.global_step
        global_batch = global_batch_size(trainer, data.batch_size)
        Console().print(
            f"[bold]{Path(trainer.default_root_dir)}[/bold]: {pl_module.encoder_config.name}, encoder "
            f"{count_params(pl_module.encoder)}, objective {count_params(pl_module.objective)} parameters; "
            f"{data.tokenizer.name} tokenizer of {data.tokenizer.vocab_size:,}; {trainer.max_steps:,} steps of {global_batch} "
            f"in {trainer.precision}" + (f", from step {step:,}" if step else ""),
            highlight=False,
        )
        self._print_memory(trainer, pl_module)

    @staticmethod
    def _print_memory(trainer: lightning.Trainer, pl_module: PretrainModule) -> None:
        device = trainer.strategy.root_device
        step = Step(
            batch_size=trainer.datamodule.batch_size,
            low_precision="bf16" in str(trainer.precision),
            activation_checkpointing=pl_module.activation_checkpointing,
            world_size=trainer.world_size,
            sharded=is_sharded(pl_module.encoder),
        )
        estimate = estimate_memory(pl_module.encoder, pl_module.objective, step)
        Console().print(estimate.describe(step), highlight=False)
        there = device_bytes(device, num_local=trainer.num_devices)
        if estimate.total > TOLERANCE * there:
            Console().print(
                f"warning: a device has {show_bytes(there)}, which may not be enough: lower data.batch_size, set "
                "model.activation_checkpointing=true, or shard with trainer.strategy=fsdp2",
                highlight=False,
            )

    def _collect(self, trainer: lightning.Trainer) -> dict[str, Any]:
        data = trainer.datamodule
        global_batch = global_batch_size(trainer, data.batch_size)
        throughput, baselines = find_callback(trainer, Throughput), find_callback(trainer, Baselines)
        return {
            "steps": trainer.global_step,
            "samples_seen": trainer.global_step * global_batch,
            "global_batch": global_batch,
            "wall_s": round(time.perf_counter() - self._started, 1),
            "imgs_per_s": round(throughput.meter.mean_imgs_per_s, 1) if throughput else None,
            "precision": str(trainer.precision),
            "val": {
                k.removeprefix("val/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")
            },
            "baseline": baselines.values if baselines else {},
            "skipped": data.fault_log.summary(),
            "seed": data.seed,
        }

    def on_validation_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        self._validated_at = trainer.global_step

    def finish(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validate the last step if that has not been done, export, and print the summary; called when `fit` returns."""
        if self._validated_at != trainer.global_step:
            trainer.validate(pl_module, datamodule=trainer.datamodule, verbose=False)
        exported = whole_module(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        run, data = Path(trainer.default_root_dir), trainer.datamodule
        info = self._collect(trainer)
        info["training_flops"] = training_flops(trainer, exported, samples=info["samples_seen"])
        export_module(exported, run / "export", image=data.image, tokenizer=data.tokenizer, info=info)
        write_atomically(run / "summary.json", (json.dumps(info, indent=2) + "\n").encode())
        latest = point_latest(run)
        output_console().print(self._panel(pl_module, run, latest, info))

    @staticmethod
    def _panel(pl_module: lightning.LightningModule, run: Path, latest: Path, info: dict[str, Any]) -> Panel:
        table = summary_grid()
        config = pl_module.encoder_config
        table.add_row(
            "trained",
            f"{config.name}: encoder {count_params(pl_module.encoder)}, objective {count_params(pl_module.objective)} parameters",
        )
        table.add_row(
            "budget",
            f"{info['steps']:,} steps x {info['global_batch']} = {info['samples_seen']:,} samples, {info['precision']}",
        )
        if info["training_flops"] is not None:
            table.add_row("compute", f"{info['training_flops']:.3g} FLOPs of training")
        table.add_row("speed", f"{info['imgs_per_s']} images/s while training, {info['wall_s'] / 60:.1f} min in all")
        for name, value in info["val"].items():
            baseline = info["baseline"].get(name)
            kind = "unigram" if name == "text_ce" else "mean patch"
            table.add_row(
                f"val/{name}", f"{value:.4f}" + (f"   ({kind} baseline {baseline:.4f})" if baseline is not None else "")
            )
        table.add_row("data", info["skipped"])
        table.add_row("run", f"{run} (also {latest})")
        table.add_row("encoder", f"{run / 'export'}: pretrain.export.load_encoder({str(run)!r})")
        # objectives without a causal decoder draw none
        pictures = [str(run / "pictures")] if (run / "pictures").is_dir() else []
        table.add_row("look at", ", ".join([*pictures, str(run / "metrics.csv"), f"tensorboard --logdir {run}"]))
        return Panel(table, title=f"{run.name} is done", title_align="left", expand=False)
