"""The command line: LightningCLI with named runs, a budget in steps or samples, and errors of one line."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pretrain.callbacks.baselines import Baselines
from pretrain.callbacks.checkpoint import AtomicCheckpointIO, RunInterrupted, StopOnSignal
from pretrain.callbacks.pictures import Pictures
from pretrain.callbacks.summary import RunSummary, find_callback
from pretrain.callbacks.throughput import Throughput
from pretrain.data.datamodule import ImageTextData, global_batch_size
from pretrain.module import PretrainModule
from pretrain.run import check_latest, default_name, keep_metrics, resolve_checkpoint
from pretrain.types import ImageSpec, UserError


def image_spec(module: PretrainModule) -> ImageSpec:
    """Picture size and statistics of the encoder that is going to be trained."""
    return module.encoder_config.image_spec()


#: fp16 is left out: its loss scaler and a fused optimiser with clipping do not go together
PRECISIONS = ("None", "32", "32-true", "bf16-mixed")
#: Lightning's warnings about what is so on purpose
_KNOWN_WARNINGS = (
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Experiment logs directory .*",  # keep_metrics has moved what would be lost
    ".*isinstance.treespec.*",
    ".*args parameter is intended.*",
    ".*smaller than the logging interval.*",
    ".*your dataloader is not resumable.*",  # its position follows from the step
)


class PretrainCLI(LightningCLI):
    """`python -m pretrain fit --config FILE [--name NAME] [--ckpt_path last] [--any.field=value]`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name", type=str | None, default=None, help="the run's name; config and time where not given"
        )
        parser.add_argument("--runs", type=str, default="runs", help="folder that holds the runs")
        parser.add_argument(
            "--max_samples", type=int | None, default=None, help="budget in samples; give this or trainer.max_steps"
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Pictures, "pictures")
        parser.set_defaults(
            {
                "checkpoint.filename": "last",
                "checkpoint.every_n_train_steps": 200,
                "checkpoint.enable_version_counter": False,
                "checkpoint.save_on_train_epoch_end": False,
            }
        )
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("model", "data.image", compute_fn=image_spec, apply_on="instantiate")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}}

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if (config.trainer.max_steps == -1) == (config.max_samples is None):
            steps = None if config.trainer.max_steps == -1 else config.trainer.max_steps
            raise UserError(
                f"budget: give exactly one of trainer.max_steps (is {steps}) and max_samples (is {config.max_samples}); "
                "--trainer.max_steps=-1 or --max_samples=null unsets one"
            )
        if str(config.trainer.precision) not in PRECISIONS:
            raise UserError(
                f"trainer.precision={config.trainer.precision} is not supported: give one of {', '.join(PRECISIONS)}"
            )
        if config.name is None:
            config.name = default_name([Path(str(path)) for path in config.config or []])
        if not config.name or Path(config.name).name != config.name or config.name == "latest":
            raise UserError(f"--name {config.name!r} must be a plain folder name other than 'latest'")
        run = Path(config.runs) / config.name
        check_latest(run)  # before hours of training, not after
        config.ckpt_path = resolve_checkpoint(run, config.ckpt_path)
        config.trainer.default_root_dir = str(run)
        config.checkpoint.dirpath = str(run / "checkpoints")

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        run = Path(self.config[self.subcommand].trainer.default_root_dir)
        run.mkdir(parents=True, exist_ok=True)
        keep_metrics(run)
        loggers = [TensorBoardLogger(run, name="", version=""), CSVLogger(run, name="", version="")]
        return super().instantiate_trainer(logger=loggers, plugins=[AtomicCheckpointIO()], **kwargs)

    def before_fit(self) -> None:
        config, trainer = self.config[self.subcommand], self.trainer
        if config.max_samples is not None:
            global_batch = global_batch_size(trainer, config.data.batch_size)
            if config.max_samples < global_batch:
                raise UserError(f"max_samples={config.max_samples} is less than one step of {global_batch}")
            # Lightning takes the budget in steps when it is built, and only then knows how many devices there are
            trainer.fit_loop.epoch_loop.max_steps = config.max_samples // global_batch

    def after_fit(self) -> None:
        find_callback(self.trainer, RunSummary).finish(self.trainer, self.model)


def default_callbacks() -> list[Any]:
    # StopOnSignal is last but for ModelCheckpoint, which Lightning moves to the end
    return [Baselines(), Throughput(), RunSummary(), StopOnSignal()]


def build_cli(args: list[str] | None = None) -> PretrainCLI:
    """Parse `args` (the command line where not given) and run the subcommand."""
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return PretrainCLI(
        PretrainModule,
        ImageTextData,
        args=args,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "callbacks": default_callbacks(),
            "max_epochs": -1,  # the budget is in steps; a finished run goes on under a longer one
            "check_val_every_n_epoch": None,  # val_check_interval counts batches, and may be longer than the run
            "gradient_clip_val": 1.0,
            "use_distributed_sampler": False,
            "log_every_n_steps": 10,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,  # RunSummary prints a shorter one
        },
    )


def shorten(message: str) -> str:
    """A parser's error as one line: the field, the value, what was expected."""
    lines = [line.strip(" -\t") for line in message.splitlines()]
    return "; ".join(line for line in lines if line)


def user_message(error: BaseException | None) -> str | None:
    """The line to show where an error, or what caused it, is the user's; None for an error of ours."""
    while error is not None:
        if isinstance(error, UserError):
            # a loader's worker puts its traceback in front of the message
            return str(error).strip().splitlines()[-1].removeprefix("pretrain.types.UserError: ")
        if isinstance(error, ArgumentError | MisconfigurationException):
            return shorten(str(error))
        error = error.__cause__
    return None


def main(args: list[str] | None = None) -> int:
    """Entry point; user errors are one line on standard error and exit status 2."""
    try:
        build_cli(args)
    except RunInterrupted as stop:
        print(f"{stop}; go on with --ckpt_path last", file=sys.stderr)
        return 130
    except Exception as error:
        line = user_message(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    return 0
