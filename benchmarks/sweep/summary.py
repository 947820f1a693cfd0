"""What a sweep found, as JSON: beside its study, and for the repository without anything of the machine."""

import json
import math
import re
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from benchmarks.sweep.config import SweepConfig
from benchmarks.sweep.study import SweepStudy
from evals.results import hash_of, source_hash
from pretrain.files import write_atomically

RESULTS = Path("runs/results/sweeps")
#: Complete trials for each field below which an importance says nothing.
TRIALS_PER_FIELD = 4


def summarise(study: SweepStudy) -> dict[str, Any]:
    """The study as plain data; `digest` is of all the rest, so that a change by hand shows."""
    config, trials = study.config, study.trials()
    rows = [_trial(trial, config) for trial in trials]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    sign = 1 if config.objective.direction == "minimize" else -1
    best = min(complete, key=lambda trial: sign * trial.value, default=None)
    importance, note = importances(study, complete)
    content = {
        "name": config.name,
        "title": config.title,
        "command": f"python -m benchmarks.sweep {config.path if not config.path.is_absolute() else config.path.name}",
        "base": str(config.base) if not config.base.is_absolute() else config.base.name,
        "overrides": dict(config.overrides),
        "space": {parameter.name: parameter.describe() for parameter in config.space},
        "objective": {
            "title": config.objective.title,
            "direction": config.objective.direction,
            "metric": config.objective.metric,
            "eval": list(config.objective.eval),
            "task": config.objective.task,
            "dataset": config.objective.dataset,
            "split": config.objective.split if config.objective.eval else "val",
        },
        "monitor": config.monitor,
        "sampler": vars(config.sampler),
        "pruner": vars(config.pruner),
        "planned": config.trials,
        "trials": rows,
        "best": None if best is None else {"number": best.number, "value": best.value, "params": best.params},
        "importance": importance,
        "importance_note": note,
        "config_hash": config.fingerprint(),
        "code_hash": source_hash("pretrain", "evals", "benchmarks/sweep"),
    }
    return sealed(json.loads(json.dumps(content)))


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """With its digest."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return rest | {"digest": hash_of(rest)}


def _trial(trial: FrozenTrial, config: SweepConfig) -> dict[str, Any]:
    sign = 1.0 if config.monitor_direction == config.objective.direction else -1.0
    about = trial.user_attrs
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "params": trial.params,
        "seconds": about.get("seconds"),
        "retries": about.get("retries", 0),
        "reason": about.get("reason", ""),
        "validation": [
            [step, sign * value] for step, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)
        ],
    }


def importances(study: SweepStudy, complete: list[FrozenTrial]) -> tuple[dict[str, float] | None, str]:
    """Share of the objective's variance that each field explains (fANOVA), or why there is none."""
    fields = [parameter.name for parameter in study.config.space]
    needed = TRIALS_PER_FIELD * len(fields)
    if len(fields) < 2:
        return None, "one field has nothing to share with"
    if len(complete) < needed:
        return None, f"{len(complete)} complete trials, at least {needed} are needed for {len(fields)} fields"
    if len({trial.value for trial in complete}) == 1:
        return None, "all trials have the same value"
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study.study, evaluator=evaluator)
    return {name: float(found[name]) for name in found}, f"fANOVA over {len(complete)} complete trials"


def without_places(content: dict[str, Any]) -> dict[str, Any]:
    """Absolute paths (in the reasons of failed trials) cut to their last part."""

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return re.sub(r"(?<![\w.:/{}-])/(?:[\w.@+-]+/)+([\w.@+-]+)", r"\1", value)
        if isinstance(value, dict):
            return {key: clean(one) for key, one in value.items()}
        return [clean(one) for one in value] if isinstance(value, list) else value

    return sealed(clean(content))


def write_summary(study: SweepStudy, *, results: Path | None = None) -> dict[str, Any]:
    """Write summary.json beside the study and, without this machine's folders, NAME.json in the folder `results`."""
    content = summarise(study)
    write_atomically(study.out / "summary.json", _json(content))
    if results is not None:
        write_atomically(results / f"{study.config.name}.json", _json(without_places(content)))
    return content


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
