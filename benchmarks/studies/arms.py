"""What is trained: a config and a seed, known by what is in the config and not by the study that asks for it.

Two studies that ask for the same training share it: "patch only" of one is "AIMv1" of another.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.studies.config import EvalConfig, RowConfig, StudyConfig, needs_weights, slug
from evals.configs import read_mapping
from evals.results import hash_of
from pretrain.types import UserError


@dataclass(frozen=True)
class Arm:
    """One encoder to train and to evaluate, for one seed, or a released one.

    Attributes:
        label: of the row that asked for it first.
        key: hash of what it is, the seed left out: equal for all seeds of a row.
        seed: of its data order, its initialisation, its draws, and of its evaluations.
        config: of `python -m pretrain fit`, without seed and budget in samples; None for a released encoder.
        change: fields of the base that it changes.
        base: file of the base.
        base_config: config of the base, whose compute is the budget; None where samples are.
        max_samples: the base's budget in samples.
        entry: module and subcommand that train.
        frozen: spec of a released encoder, its file left out.
    """

    label: str
    key: str
    seed: int
    config: Mapping[str, Any] | None
    change: Mapping[str, Any]
    base: str
    base_config: Mapping[str, Any] | None
    max_samples: int
    entry: tuple[str, ...]
    frozen: str | None = None

    @property
    def needs_weights(self) -> bool:
        return needs_weights(self.frozen)

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{slug(self.label)}-{self.key[:8]}-s{self.seed}"


def set_field(config: dict[str, Any], name: str, value: Any) -> None:
    """Set a field by its dotted name; a mapping takes the place of what was there, as a whole."""
    *path, last = name.split(".")
    for part in path:
        config = config.setdefault(part, {})
        if not isinstance(config, dict):
            raise UserError(f"field {name!r}: {part!r} is {config!r} in the base, which has no fields of its own")
    config[last] = deepcopy(value)


def resolve(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The base with some fields set."""
    config = deepcopy(dict(base))
    for name, value in overrides.items():
        set_field(config, name, value)
    return config


def read_base(path: Path) -> tuple[dict[str, Any], int]:
    """A config of `python -m pretrain fit` without seed and budget, and its budget in samples.

    Raises:
        UserError: it cannot be read, or has a budget in steps, which would not be the same for another batch size.
    """
    config = read_mapping(path, wanted="give a config of python -m pretrain fit")
    config.pop("seed_everything", None)
    max_samples = config.pop("max_samples", None)
    if not isinstance(max_samples, int) or "max_steps" in (config.get("trainer") or {}):
        raise UserError(f"{path}: a study's base has its budget in max_samples, and no trainer.max_steps")
    return config, max_samples


def arm_of(study: StudyConfig, row: RowConfig, *, seed: int) -> Arm:
    """What a row trains for a seed."""
    base, max_samples = read_base(study.base)
    place = study.base.as_posix()
    if row.frozen is not None:
        return Arm(row.name, hash_of({"frozen": row.frozen}), seed, None, {}, place, None, 0, (), row.frozen)
    change = study.overrides(row)
    config = resolve(base, change)
    base_config = base if row.budget == "flops" else None
    key = hash_of({"config": config, "compute_of": base_config, "max_samples": max_samples})
    return Arm(row.name, key, seed, config, change, place, base_config, max_samples, study.entry)


@dataclass(frozen=True)
class Job:
    """An arm with the evaluations that its studies ask for.

    Attributes:
        arm: to train.
        evals: by name.
    """

    arm: Arm
    evals: Mapping[str, EvalConfig]


def eval_key(evaluation: EvalConfig) -> str:
    """Hash of an evaluation's command: numbers of another protocol are no numbers of this one."""
    return hash_of(list(evaluation.command))


def plan(studies: Iterable[StudyConfig], seeds: Iterable[int]) -> list[Job]:
    """All jobs, each once; a seed's before those of the next one, so that what there is so far can be paired."""
    studies = list(studies)
    jobs: dict[tuple[str, int], Job] = {}
    for seed in seeds:
        for study in studies:
            for row in study.rows:
                arm = arm_of(study, row, seed=seed)
                known = jobs.get((arm.key, seed))
                evals = dict(known.evals) if known else {}
                for name, one in study.evals.items():
                    if name in evals and eval_key(evals[name]) != eval_key(one):
                        raise UserError(
                            f"study {study.name}: evals.{name} is another command in another study; rename it"
                        )
                    evals[name] = one
                jobs[arm.key, seed] = Job(known.arm if known else arm, evals)
    return list(jobs.values())
