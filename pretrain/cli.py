"""The command line: LightningCLI with named runs, a budget in steps or samples, and errors of one line."""

import errno
import logging
import os
import re
import sys
import warnings
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from pretrain.branch import copy_tokenizer, read_branch, trunk_checkpoint
from pretrain.callbacks.baselines import Baselines
from pretrain.callbacks.checkpoint import AtomicCheckpointIO, KeepCheckpoints, RunInterrupted, StopOnSignal
from pretrain.callbacks.pictures import Pictures
from pretrain.callbacks.summary import RunSummary, find_callback
from pretrain.callbacks.throughput import Throughput
from pretrain.data.datamodule import ImageTextData, global_batch_size
from pretrain.data.source_config import SourceConfig
from pretrain.module import PretrainModule
from pretrain.run import check_latest, default_name, keep_metrics, remove_leftovers, resolve_checkpoint
from pretrain.strategies import FSDP2Strategy
from pretrain.types import ImageSpec, UserError


def image_spec(module: PretrainModule) -> ImageSpec:
    """Picture size and statistics of the encoder that is going to be trained."""
    return module.encoder_config.image_spec()


#: fp16 is left out: its loss scaler and a fused optimiser with clipping do not go together
PRECISIONS = ("None", "32", "32-true", "bf16-mixed")
#: by name or class; what is left out keeps weights in ways that checkpoints and callbacks here do not know
STRATEGIES = ("auto", "ddp", "fsdp2", DDPStrategy.__name__, FSDP2Strategy.__name__)
#: Lightning's warnings about what is so on purpose
_KNOWN_WARNINGS = (
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Experiment logs directory .*",  # keep_metrics has moved what would be lost
    ".*isinstance.treespec.*",
    ".*args parameter is intended.*",
    ".*smaller than the logging interval.*",
    ".*dirpath has changed from.*",  # a branch has a folder of its own
    ".*sync_dist=True.*",  # the module has summed over ranks
    ".*your dataloader is not resumable.*",  # its position follows from the step
)


#: Where a launched process finds the name that the one which launched it has chosen.
_NAME_VARIABLE = "PRETRAIN_RUN_NAME"


def is_launched() -> bool:
    """Whether Lightning has started this process from the run's first one. To be asked before the run has a name."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0 and _NAME_VARIABLE in os.environ


def shared_name(configs: list[Path], *, num_nodes: int) -> str:
    """Name for a run that was given none, the same in all its processes.

    Raises:
        UserError: the processes were started from outside (torchrun, SLURM), and have no way to agree on a time.
    """
    if is_launched():
        return os.environ[_NAME_VARIABLE]
    started = max(num_nodes, *(int(os.environ.get(variable, 1)) for variable in ("WORLD_SIZE", "SLURM_NTASKS")))
    if started > 1:
        raise UserError(f"--name is needed where several processes are started from outside (here {started})")
    return default_name(configs)


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
        parser.add_argument(
            "--branch_from",
            type=str | None,
            default=None,
            help="trunk to go on from: a run, or a checkpoint that it kept",
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(KeepCheckpoints, "keep")
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
        strategy = config.trainer.strategy
        strategy = strategy if isinstance(strategy, str) else strategy.class_path
        if strategy.split(".")[-1] not in STRATEGIES:
            raise UserError(f"trainer.strategy={strategy} is not supported: give auto, ddp or fsdp2")
        if config.name is None:
            configs = [Path(str(path)) for path in config.config or []]
            config.name = shared_name(configs, num_nodes=config.trainer.num_nodes)
        if not config.name or Path(config.name).name != config.name or config.name == "latest":
            raise UserError(f"--name {config.name!r} must be a plain folder name other than 'latest'")
        os.environ[_NAME_VARIABLE] = config.name
        run = Path(config.runs) / config.name
        check_latest(run)  # before hours of training, not after
        config.ckpt_path = resolve_checkpoint(run, config.ckpt_path)
        self.new_branch = config.branch_from is not None and config.ckpt_path is None
        if self.new_branch:
            config.ckpt_path = str(trunk_checkpoint(config.branch_from))
        self.branch = None if config.ckpt_path is None else read_branch(config.ckpt_path, new=self.new_branch)
        config.trainer.default_root_dir = str(run)
        config.checkpoint.dirpath = str(run / "checkpoints")

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        run = Path(self.config[self.subcommand].trainer.default_root_dir)
        run.mkdir(parents=True, exist_ok=True)
        if rank_zero_only.rank == 0:
            keep_metrics(run)
            remove_leftovers(run)
            if self.new_branch:
                copy_tokenizer(Path(self.config[self.subcommand].ckpt_path), run)
        loggers = [TensorBoardLogger(run, name="", version=""), CSVLogger(run, name="", version="")]
        return super().instantiate_trainer(logger=loggers, plugins=[AtomicCheckpointIO()], **kwargs)

    def before_fit(self) -> None:
        config, trainer = self.config[self.subcommand], self.trainer
        # a run is one folder for all nodes; a tokenizer built by each of them would be built over the others'
        self.datamodule.prepare_data_per_node = False
        if config.max_samples is not None:
            global_batch = global_batch_size(trainer, config.data.batch_size)
            if config.max_samples < global_batch:
                raise UserError(f"max_samples={config.max_samples} is less than one step of {global_batch}")
            # Lightning takes the budget in steps when it is built, and only then knows how many devices there are
            trainer.fit_loop.epoch_loop.max_steps = config.max_samples // global_batch

        self.model.branch, self.datamodule.keeps_tokenizer = self.branch, config.ckpt_path is not None

    def after_fit(self) -> None:
        find_callback(self.trainer, RunSummary).finish(self.trainer, self.model)


def default_callbacks() -> list[Any]:
    # StopOnSignal is last but for ModelCheckpoint, which Lightning moves to the end
    return [Baselines(), Throughput(), RunSummary(), StopOnSignal()]


def refuse_unknown_fields(args: list[str]) -> None:
    """UserError for a field of `data.train` or `data.val` that there is not.

    jsonargparse does this by itself, but for an empty value (`--data.train.levls={}`), which it drops: the fields are of a
    dataclass that may be absent.
    """
    known = [field.name for field in fields(SourceConfig)]
    for arg in args:
        match = re.match(r"--(data\.(?:train|val))\.(\w+)", arg)
        if match and match.group(2) not in known:
            near = get_close_matches(match.group(2), known, n=1)
            hint = f"; did you mean {match.group(1)}.{near[0]}?" if near else f"; there are {', '.join(known)}"
            raise UserError(f"{match.group(1)}.{match.group(2)} is no field of a source{hint}")


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
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk is full ({error}); what was saved before is whole: free some space, go on with --ckpt_path last"
        if isinstance(error, ArgumentError | MisconfigurationException):
            return shorten(str(error))
        error = error.__cause__
    return None


def main(args: list[str] | None = None) -> int:
    """Entry point; user errors are one line on standard error and exit status 2."""
    launched = is_launched()
    try:
        refuse_unknown_fields(sys.argv[1:] if args is None else args)
        build_cli(args)
    except RunInterrupted as stop:
        if launched:  # the first process reports; Lightning would kill it for another status than 0 here
            return 0
        print(f"{stop}; go on with --ckpt_path last", file=sys.stderr)
        return 130
    except Exception as error:
        line = user_message(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    return 0
