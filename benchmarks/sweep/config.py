"""Sweeps as YAML: configs/benchmarks/sweeps/NAME.yaml.

A file with all fields:

    title: Rate of SigLIP                 # for people
    base: configs/benchmarks/base/ablation.yaml      # a config of python -m pretrain fit
    overrides: {model.objective: {kind: siglip}, max_samples: 24000}   # fields that every trial sets
    space:                                # fields that are searched, by dotted name
      model.optim.lr: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
      model.encoder.depth: {type: int, low: 4, high: 8, step: 2}
      data.tokenizer: {type: categorical, choices: [bpe, clip]}
      model.optim.weight_decay: [1.0e-5, 1.0e-4, 1.0e-3]     # short for categorical
    trials: 20                            # distinct settings in all; a grid may leave it out
    sampler: {kind: tpe, seed: 0}         # tpe, random or grid
    entry: [pretrain, fit]                # module and subcommand that train
    objective:                            # {metric: val/loss, direction: minimize}, of the run's last validation, or
                                          # one number of an evaluation of the finished run:
      eval: [evals, imagenet, --encoder, "{run}", --dataset, FILE, --tasks, "[linear_probe]", --seed, "{seed}", --out, "{out}"]
      task: linear_probe                  # these four pick the row of results
      dataset: scenes_shape_tuning
      metric: top1
      split: test                         # the tuning data's: they are another data set than the test set
      direction: maximize
    pruner: {kind: median, warmup: 500, startup: 4, metric: val/loss}  # or hyperband, none: on the running trial's validation
    enqueue: [{model.optim.lr: 2.0e-3}]   # settings after trial 0; a field that is left out is as in trial 0
    defaults: {model.encoder.depth: 6}    # trial 0's, where the base does not say or another value is meant
    retries: 20                           # how often a trial is taken up again before it counts as failed

Trial 0 is always the base's own setting. `--results` is added to the evaluation's command.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.fields import build
from benchmarks.sweep.space import Parameter, Scalar, grid_size, read_space, scalar
from evals.configs import find_config, read_yaml
from evals.results import hash_of
from pretrain.types import UserError

FOLDER = Path("configs/benchmarks/sweeps")
#: Fields whose change moves the steps at which a run validates: trials are compared at equal steps.
_MOVES_STEPS = ("data.batch_size", "trainer.val_check_interval", "trainer.accumulate_grad_batches")


@dataclass(frozen=True)
class SamplerConfig:
    """How settings are chosen.

    Attributes:
        kind: "tpe", "random" or "grid".
        seed: with the trial's number it gives the draws.
    """

    kind: Literal["tpe", "random", "grid"] = "tpe"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("tpe", "random", "grid"):
            raise UserError(f"kind {self.kind!r} is unknown; give tpe, random or grid")
        if not isinstance(self.seed, int):
            raise UserError(f"seed is {self.seed!r}; give a whole number")


@dataclass(frozen=True)
class PrunerConfig:
    """When a trial is given up.

    Attributes:
        kind: "median": worse than the median at this step; "hyperband"; "none".
        warmup: steps before which none is given up (of Hyperband: the smallest budget).
        startup: trials that have to be complete before the median counts.
        metric: of validation; the objective's own, or val/loss where that is an evaluation's.
    """

    kind: Literal["median", "hyperband", "none"] = "none"
    warmup: int = 0
    startup: int = 4
    metric: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("median", "hyperband", "none"):
            raise UserError(f"kind {self.kind!r} is unknown; give median, hyperband or none")
        for name in ("warmup", "startup"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise UserError(f"{name} is {value!r}; give a whole number of at least 0")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The number that is optimised.

    Attributes:
        metric: of the run's validation ("val/loss"), or of the evaluation's row ("top1").
        direction: "minimize" or "maximize".
        eval: module and arguments behind `python -m`, with {run}, {seed}, {out}; none for a validation's metric.
        task: of the evaluation's row, likewise `dataset` and `split`.
    """

    metric: str
    direction: Literal["minimize", "maximize"]
    eval: tuple[str, ...] = ()
    task: str = ""
    dataset: str = ""
    split: str = "test"

    def __post_init__(self) -> None:
        if self.direction not in ("minimize", "maximize"):
            raise UserError(f"direction {self.direction!r} is unknown; give minimize or maximize")
        if not self.eval and not str(self.metric).startswith("val/"):
            raise UserError(
                f"metric {self.metric!r} is not of a run's validation (val/loss, val/text_ce, ...), and there is no eval"
            )
        if self.eval and "{run}" not in " ".join(self.eval):
            raise UserError("eval does not say where the {run} goes")
        if self.eval and not (self.task and self.dataset):
            raise UserError("eval needs task and dataset: they pick the row of results")

    @property
    def title(self) -> str:
        return f"{self.dataset} {self.task} {self.metric}" if self.eval else self.metric


@dataclass(frozen=True)
class SweepConfig:
    """A sweep; the fields are those of its file (see above)."""

    name: str
    path: Path
    base: Path
    space: tuple[Parameter, ...]
    objective: ObjectiveConfig
    trials: int
    title: str
    overrides: Mapping[str, Any]
    sampler: SamplerConfig
    pruner: PrunerConfig
    enqueue: tuple[Mapping[str, Scalar], ...]
    defaults: Mapping[str, Scalar]
    retries: int
    entry: tuple[str, ...]

    @property
    def monitor(self) -> str:
        """The validation metric that the pruner looks at."""
        return self.pruner.metric or ("val/loss" if self.objective.eval else self.objective.metric)

    @property
    def monitor_direction(self) -> str:
        return self.objective.direction if self.monitor == self.objective.metric else "minimize"

    @property
    def seed(self) -> int:
        """Of the runs."""
        return int(
            self.overrides.get("seed_everything", yaml.safe_load(self.base.read_text()).get("seed_everything", 0))
        )

    def fingerprint(self) -> str:
        """Of all that a study's trials have in common; how many there are to be may change."""
        about = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("name", "path", "base", "title", "trials", "retries"):
            del about[name]
        return hash_of(about | {"base": yaml.safe_load(self.base.read_text())})


FIELDS = ("title", "base", "overrides", "space", "trials", "sampler", "objective", "pruner", "enqueue", "defaults")
FIELDS = (*FIELDS, "retries", "entry")


def load_sweep(name: str, *, folder: Path = FOLDER, trials: int | None = None) -> SweepConfig:
    """configs/benchmarks/sweeps/NAME.yaml, or a file; `trials` wins over the file's.

    Raises:
        UserError: no such file, unknown or missing fields, bad ranges, more trials than settings, enqueued ones outside.
    """
    path = find_config(name, folder, field="sweep")
    content = dict(read_yaml(path, list(FIELDS)))
    for needed in ("base", "space", "objective"):
        if not content.get(needed):
            raise UserError(f"{path}: field {needed!r} is missing")
    base = Path(str(content["base"]))
    if not base.is_file():
        raise UserError(f"{path}: base {str(base)!r} is no file; give a config of python -m pretrain fit")
    space = read_space(content["space"], where=str(path))
    overrides, defaults = (_mapping(content, key, path) for key in ("overrides", "defaults"))
    if both := [p.name for p in space if p.name in overrides]:
        raise UserError(f"{path}: {both[0]} is in space and in overrides; leave it out of one")
    names = [p.name for p in space]
    enqueue = content.get("enqueue") or []
    if not isinstance(enqueue, list) or not all(isinstance(one, dict) for one in enqueue):
        raise UserError(f"{path}: enqueue is {enqueue!r}; give a list of settings")
    for where, one in [("defaults", defaults), *((f"enqueue, setting {n}", one) for n, one in enumerate(enqueue, 1))]:
        _check_names(space, one, where=f"{path}: {where}")
    sampler = build(SamplerConfig, content.get("sampler") or {}, where=f"{path}: sampler")
    pruner = build(PrunerConfig, content.get("pruner") or {}, where=f"{path}: pruner")
    moved = [name for name in names if name in _MOVES_STEPS]
    if moved and pruner.kind != "none":
        raise UserError(f"{path}: {moved[0]} is searched, so trials validate at other steps: set pruner.kind to none")
    return SweepConfig(
        name=path.stem,
        path=path,
        base=base,
        space=space,
        objective=_read_objective(content["objective"], f"{path}: objective"),
        trials=_read_trials(content, trials, space, sampler, len(enqueue), path),
        title=str(content.get("title") or path.stem),
        overrides=overrides,
        sampler=sampler,
        pruner=pruner,
        enqueue=tuple({key: scalar(value) for key, value in one.items()} for one in enqueue),
        defaults={key: scalar(value) for key, value in defaults.items()},
        retries=_count(content.get("retries", 20), f"{path}: retries"),
        entry=_words(content.get("entry", ["pretrain", "fit"]), f"{path}: entry"),
    )


def _check_names(space: tuple[Parameter, ...], setting: Mapping[str, Any], *, where: str) -> None:
    known = {p.name: p for p in space}
    for name, value in setting.items():
        if name not in known:
            raise UserError(f"{where}: {name!r} is not in the space; it has {', '.join(known)}")
        if not known[name].holds(scalar(value)):
            raise UserError(f"{where}: {name} is {value!r}, which is not in the space ({known[name].describe()})")


def _read_trials(
    content: Mapping[str, Any],
    own: int | None,
    space: tuple[Parameter, ...],
    sampler: SamplerConfig,
    enqueued: int,
    path: Path,
) -> int:
    """How many distinct settings; trial 0 may lie beside a grid's points, so that a grid has one more at most."""
    given, size = own if own is not None else content.get("trials"), grid_size(space)
    if sampler.kind == "grid" and size == float("inf"):
        raise UserError(f"{path}: sampler grid wants choices, whole numbers or steps; a field of space is continuous")
    if given is None and sampler.kind == "grid":
        return int(size)
    if given is None:
        raise UserError(f"{path}: field 'trials' is missing")
    count = _count(given, f"{path}: trials")
    if count > size:
        raise UserError(f"{path}: trials is {count}, but the space has {size} settings")
    if count < 1 + enqueued:
        raise UserError(f"{path}: trials is {count}, less than the defaults and {enqueued} enqueued settings")
    return count


def _read_objective(content: Any, where: str) -> ObjectiveConfig:
    if not isinstance(content, dict):
        raise UserError(
            f"{where} is {content!r}; give {{metric, direction}} or {{eval, task, dataset, metric, split, direction}}"
        )
    content = dict(content)
    if "eval" in content:
        content["eval"] = _words(content["eval"], f"{where}.eval")
    return build(ObjectiveConfig, content, where=where)


def _words(value: Any, where: str) -> tuple[str, ...]:
    words = shlex.split(value) if isinstance(value, str) else value
    if not isinstance(words, list) or not words:
        raise UserError(f"{where} is {value!r}; give a module and its arguments")
    return tuple(map(str, words))


def _mapping(content: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: {key} is {value!r}; give fields by dotted name")
    return value


def _count(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where} is {value!r}; give a whole number of at least 1")
    return value
