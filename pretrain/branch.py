"""Trunks and branches: a run that starts from another's checkpoint, with a schedule and a folder of its own.

As in the paper's scaling study (section 3.1): one long run under a slowly falling rate, whose checkpoints each go on as a
short cool-down. The branch goes on with the trunk's samples where it left them, so that it sees none of them twice.
"""

import shutil
from pathlib import Path

import torch

from pretrain.optim import Branch
from pretrain.run import checkpoint_path
from pretrain.types import UserError


def trunk_checkpoint(branch_from: str) -> Path:
    """The checkpoint that `--branch_from` names: a file, or a run's last.

    Raises:
        UserError: there is none.
    """
    path = Path(branch_from)
    if path.is_file():
        return path
    last = checkpoint_path(path)
    if last.is_file():
        return last
    raise UserError(f"--branch_from {branch_from}: neither a checkpoint nor a run that has one ({last} does not exist)")


def read_branch(checkpoint: str | Path, *, new: bool) -> Branch | None:
    """Where the run of a checkpoint left its trunk; with `new`, where a branch that starts there does.

    Only the numbers are read, not the weights.

    Raises:
        UserError: the file is no checkpoint of this suite.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        if new:
            return Branch(content["global_step"], content["optimizer_states"][0]["param_groups"][0]["lr"])
        return Branch(*content["branch"]) if content.get("branch") else None
    except (OSError, RuntimeError, KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise UserError(f"{checkpoint} is no checkpoint of this suite ({type(error).__name__})") from error


def copy_tokenizer(checkpoint: Path, run: Path) -> None:
    """Give a branch its trunk's tokenizer, without which its tokens would mean other words.

    Raises:
        UserError: there is none beside the checkpoint.
    """
    source = checkpoint.parent.parent / "tokenizer"
    if not source.is_dir():
        raise UserError(f"--branch_from: {checkpoint} has no tokenizer at {source}; leave it in its run's folder")
    shutil.copytree(source, run / "tokenizer", dirs_exist_ok=True)
