"""Scaling studies as YAML: a base, sizes as changes of it, budgets in samples. configs/benchmarks/scaling/NAME.yaml is one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.studies.config import slug
from evals.configs import find_config, read_mapping, read_yaml
from pretrain.types import UserError

FOLDER = Path("configs/benchmarks/scaling")
_FIELDS = ("title", "base", "sizes", "budgets", "cooldown", "min_lr", "common")


@dataclass(frozen=True)
class SizeConfig:
    """One size.

    Attributes:
        name: for folders and rows.
        change: fields of the base's config that differ.
        imgs_per_s: about how fast one worker trains it, for the first estimate; None where nobody has measured.
    """

    name: str
    change: Mapping[str, Any]
    imgs_per_s: float | None = None


@dataclass(frozen=True)
class ScalingConfig:
    """A scaling study.

    Attributes:
        name: of its file.
        title: for people.
        base: a config of `python -m pretrain fit`.
        content: of the base, with the files that it names read in.
        sizes: smallest first, as given.
        budgets: samples that a run sees in all, trunk and cool-down together, rising.
        cooldown: share of a budget's steps that is cool-down (section 3.1: 20%).
        min_lr: rate that a cool-down ends at (section 3.1: 1e-6).
        common: fields of the base's config that differ in all runs.
    """

    name: str
    title: str
    base: Path
    content: Mapping[str, Any]
    sizes: tuple[SizeConfig, ...]
    budgets: tuple[int, ...]
    cooldown: float = 0.2
    min_lr: float = 1e-6
    common: Mapping[str, Any] = field(default_factory=dict)

    def changes(self, size: SizeConfig) -> dict[str, Any]:
        """What the runs of a size change in the base."""
        return dict(self.common) | dict(size.change)

    def value(self, size: SizeConfig, name: str, default: Any = None) -> Any:
        """Of a field of a size's runs, e.g. "data.batch_size"; `default` where the config says nothing."""
        changes = self.changes(size)
        if name in changes:
            return changes[name]
        found: Any = self.content
        for part in name.split("."):
            if not isinstance(found, dict) or part not in found:
                return default
            found = found[part]
        return default if found is None else found

    def global_batch(self, size: SizeConfig) -> int:
        """Samples of an optimiser step.

        Raises:
            UserError: it does not follow from the config.
        """
        batch = 1
        names = ("data.batch_size", "trainer.accumulate_grad_batches", "trainer.devices", "trainer.num_nodes")
        for name in names:
            value = self.value(size, name, None if name == "data.batch_size" else 1)
            if type(value) is not int or value < 1:
                raise UserError(
                    f"{self.base}: {name} is {value!r}; a scaling study needs a number, to count budgets in steps"
                )
            batch *= value
        return batch


def read_content(path: Path) -> dict[str, Any]:
    """A config of `fit` with the files that stand in place of its parts read in, as far as they are named as "parts/x.yaml".

    Raises:
        UserError: a file that cannot be read or is no mapping.
    """
    content = read_mapping(path, wanted="give a config of python -m pretrain fit")

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: resolve(one) for name, one in value.items()}
        return read_content(path.parent / value) if isinstance(value, str) and value.endswith(".yaml") else value

    return {name: resolve(value) for name, value in content.items()}


def load_scaling(name: str, *, folder: Path = FOLDER) -> ScalingConfig:
    """configs/benchmarks/scaling/NAME.yaml, or a file.

    Raises:
        UserError: no such file, unknown or missing fields, budgets or sizes that cannot be meant.
    """
    path = find_config(name, folder, field="scaling study")
    content = dict(read_yaml(path, _FIELDS))
    for needed in ("title", "base", "sizes", "budgets"):
        if not content.get(needed):
            raise UserError(f"{path}: field {needed!r} is missing")
    base = Path(str(content["base"]))
    if not base.is_file():
        raise UserError(f"{path}: base {str(base)!r} is no file; give a config of python -m pretrain fit")
    budgets = content["budgets"]
    if not isinstance(budgets, list) or any(type(one) is not int or one < 1 for one in budgets):
        raise UserError(f"{path}: budgets {budgets!r} must be a list of numbers of samples")
    if sorted(set(budgets)) != budgets:
        raise UserError(f"{path}: budgets {budgets} must rise, each once")
    shares = {"cooldown": content.get("cooldown", 0.2), "min_lr": content.get("min_lr", 1e-6)}
    for key, value in shares.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise UserError(
                f"{path}: {key} is {value!r}; give a number between 0 and 1 (1e-6 is written 1.0e-6 in YAML)"
            )
    common = content.get("common") or {}
    if not isinstance(common, dict):
        raise UserError(f"{path}: common must be a mapping of fields of the base's config, not {common!r}")
    sizes = _read_sizes(content["sizes"], path)
    return ScalingConfig(
        path.stem, str(content["title"]), base, read_content(base), sizes, tuple(budgets), common=common, **shares
    )


def _read_sizes(values: Any, path: Path) -> tuple[SizeConfig, ...]:
    if not isinstance(values, dict):
        raise UserError(f"{path}: sizes must be a mapping of name to change and imgs_per_s, not {values!r}")
    sizes = []
    for name, about in values.items():
        where = f"{path}: sizes.{name}"
        if slug(str(name)) != name:
            raise UserError(f"{where}: a size names folders: lower case letters, digits, '.' and '-' alone")
        if (
            not isinstance(about, dict)
            or set(about) - {"change", "imgs_per_s"}
            or not isinstance(about.get("change"), dict)
        ):
            raise UserError(f"{where} must be a mapping of change (a mapping) and imgs_per_s, not {about!r}")
        speed = about.get("imgs_per_s")
        if speed is not None and (isinstance(speed, bool) or not isinstance(speed, int | float) or speed <= 0):
            raise UserError(f"{where}.imgs_per_s is {speed!r}; give images per second of one worker, or leave it out")
        sizes.append(SizeConfig(name, about["change"], speed))
    return tuple(sizes)
