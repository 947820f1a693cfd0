"""The run that evaluations take where no encoder is named: made first where there is none."""

import subprocess
import sys
from pathlib import Path

from evals.encoder import TokenEncoder
from pretrain.export import find_export
from pretrain.run import checkpoint_path, point_latest
from pretrain.types import UserError

CONFIG = Path(__file__).parents[1] / "configs" / "pretrain" / "aimv2_nano_scenes.yaml"
NAME = "default"
RUNS = Path("runs")


def train_default_run() -> Path:
    """Train the default encoder on scenes, about 10 minutes on 2 CPU cores; returns the run's folder, runs/latest points there.

    One that was interrupted goes on; a finished one of that name is taken as it is.

    Raises:
        UserError: training failed; its own message stands above.
        KeyboardInterrupt: training was interrupted; it has saved.
    """
    run = RUNS / NAME
    try:
        find_export(run)
    except UserError:
        pass  # none, or one that has not finished
    else:
        point_latest(run)
        return run
    command = [sys.executable, "-m", "pretrain", "fit", "--config", str(CONFIG), "--name", NAME]
    if checkpoint_path(run).is_file():
        command += ["--ckpt_path", "last"]
    print(
        "there is no run to evaluate yet: training the default one first, about 10 minutes on 2 CPU cores", flush=True
    )
    status = subprocess.run(command, check=False).returncode
    if status in (130, -2, 143, -15):  # Ctrl-C reaches it as well
        raise KeyboardInterrupt
    if status:
        raise UserError(f"training the default run failed with status {status}; start it with: make pretrain")
    find_export(run)
    return run


def load_or_train(spec: str, *, seed: int) -> TokenEncoder:
    """The encoder named by `spec`; where it is the latest run, or its random twin, and there is none, one is trained first.

    Raises:
        UserError: as `evals.load.load_encoder` and :func:`train_default_run`.
    """
    from evals.load import NoRunError, load_encoder

    try:
        return load_encoder(spec, seed=seed)
    except NoRunError:
        train_default_run()
        return load_encoder(spec, seed=seed)
