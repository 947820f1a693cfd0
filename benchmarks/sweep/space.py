"""Search spaces: config fields with their ranges, and the arguments that set them."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pretrain.types import UserError

#: What one value of a setting can be; lists and mappings stand in a study as their JSON.
Scalar = str | int | float | bool | None
KEYS = {
    "float": ("type", "low", "high", "log", "step"),
    "int": ("type", "low", "high", "log", "step"),
    "categorical": ("type", "choices"),
}


@dataclass(frozen=True)
class Parameter:
    """A config field and what it may be.

    Attributes:
        name: of the field, dotted: "model.optim.lr".
        distribution: Optuna's.
    """

    name: str
    distribution: BaseDistribution

    def holds(self, value: Scalar) -> bool:
        """Whether `value` is one of its values; nothing is clipped."""
        about = self.distribution
        if isinstance(about, CategoricalDistribution):
            return any(
                value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in about.choices
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not about.low <= value <= about.high:
            return False
        if isinstance(about, IntDistribution) and value != int(value):
            return False
        if about.step is None or (isinstance(about, IntDistribution) and about.log):
            return True
        steps = (value - about.low) / about.step
        return math.isclose(steps, round(steps), abs_tol=1e-8)

    def values(self) -> tuple[Scalar, ...] | None:
        """All of them; None where there are infinitely many."""
        about = self.distribution
        if isinstance(about, CategoricalDistribution):
            return about.choices
        if isinstance(about, IntDistribution):
            return tuple(range(about.low, about.high + 1, about.step))
        if about.step is None:
            return None if about.low < about.high else (about.low,)
        return tuple(about.low + n * about.step for n in range(round((about.high - about.low) / about.step) + 1))

    def describe(self) -> str:
        about = self.distribution
        if isinstance(about, CategoricalDistribution):
            return f"one of {', '.join(map(str, about.choices))}"
        kind = "whole numbers" if isinstance(about, IntDistribution) else "numbers"
        step = f" in steps of {about.step:g}" if about.step not in (None, 1) else ""
        return f"{kind} from {about.low:g} to {about.high:g}{step}" + (", by their logarithm" if about.log else "")


def scalar(value: Any) -> Scalar:
    """A value as a study keeps it. YAML reads 1e-3 as text (it wants 1.0e-3): text that is a number becomes one."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return number if math.isfinite(number) else value
    return value if value is None or isinstance(value, int | float) else json.dumps(value)


def read_parameter(name: str, about: Any, *, where: str) -> Parameter:
    """A field of `space`: {type: float, low, high, log, step}, {type: int, ...}, {type: categorical, choices}, or the choices.

    Raises:
        UserError: unknown or missing key, bounds that are none, a step on a logarithm.
    """
    where = f"{where}: space.{name}"
    if isinstance(about, list):
        about = {"type": "categorical", "choices": about}
    if not isinstance(about, dict) or about.get("type") not in KEYS:
        raise UserError(f"{where} is {about!r}; give {{type: float|int|categorical, ...}} or a list of choices")
    kind = about["type"]
    if unknown := [key for key in about if key not in KEYS[kind]]:
        raise UserError(f"{where}: key {unknown[0]!r} is unknown; a {kind} has {', '.join(KEYS[kind])}")
    if kind == "categorical":
        choices = about.get("choices")
        if not isinstance(choices, list) or not choices:
            raise UserError(f"{where}: choices is {choices!r}; give a list of at least one value")
        values = tuple(scalar(choice) for choice in choices)
        if len({repr(value) for value in values}) < len(values):
            raise UserError(f"{where}: choices {choices} has a value twice")
        return Parameter(name, CategoricalDistribution(values))
    return Parameter(name, _read_range(kind, about, where))


def _read_range(kind: str, about: Mapping[str, Any], where: str) -> BaseDistribution:
    number = {"float": float, "int": int}[kind]
    bounds: dict[str, Any] = {}
    for key in ("low", "high", "step"):
        value = scalar(about.get(key))
        if value is None and key == "step":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or number(value) != value:
            raise UserError(
                f"{where}: {key} is {about.get(key)!r}; give {'a whole number' if kind == 'int' else 'a number'}"
            )
        bounds[key] = number(value)
    log = about.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{where}: log is {log!r}; give true or false")
    if bounds["low"] > bounds["high"]:
        raise UserError(f"{where}: low {bounds['low']:g} is above high {bounds['high']:g}")
    if bounds.get("step", 1) <= 0:
        raise UserError(f"{where}: step is {bounds['step']:g}; give one above 0")
    if log and (bounds["low"] <= 0 or "step" in bounds):
        raise UserError(f"{where}: log wants low above 0 and no step")
    if "step" in bounds and not math.isclose(
        steps := (bounds["high"] - bounds["low"]) / bounds["step"], round(steps), abs_tol=1e-8
    ):
        raise UserError(f"{where}: high {bounds['high']:g} is no whole number of steps of {bounds['step']:g} above low")
    return FloatDistribution(**bounds, log=log) if kind == "float" else IntDistribution(**bounds, log=log)


def read_space(content: Any, *, where: str) -> tuple[Parameter, ...]:
    if not isinstance(content, dict) or not content:
        raise UserError(f"{where}: space is {content!r}; give config fields with their ranges")
    return tuple(read_parameter(str(name), about, where=where) for name, about in content.items())


def grid(space: tuple[Parameter, ...]) -> Iterator[dict[str, Scalar]] | None:
    """All settings, the last field fastest; None where there are infinitely many."""
    values = [parameter.values() for parameter in space]
    if any(one is None for one in values):
        return None
    return (dict(zip([p.name for p in space], setting, strict=True)) for setting in product(*values))


def grid_size(space: tuple[Parameter, ...]) -> float:
    values = [parameter.values() for parameter in space]
    return math.inf if any(one is None for one in values) else math.prod(len(one) for one in values)


def check_setting(space: tuple[Parameter, ...], setting: Mapping[str, Any], *, where: str) -> dict[str, Scalar]:
    """A setting of every field. Raises UserError for a value outside of its range: it would have to be clipped."""
    found = {}
    for parameter in space:
        value = scalar(setting[parameter.name])
        if not parameter.holds(value):
            raise UserError(
                f"{where}: {parameter.name} is {value!r}, which is not in the space ({parameter.describe()})"
            )
        found[parameter.name] = value
    return found


def default_setting(
    space: tuple[Parameter, ...], config: Mapping[str, Any], own: Mapping[str, Any], *, where: str
) -> dict[str, Scalar]:
    """The published defaults: the base's own values for the fields of the space.

    Args:
        space: fields.
        config: the base's resolved config, defaults of the code included.
        own: values that the sweep gives itself, for fields that the base leaves open.
        where: names the sweep's file, for errors.

    Raises:
        UserError: a field that the config has not, or a value outside of its range.
    """
    values = {p.name: own[p.name] if p.name in own else look_up(config, p.name, where=where) for p in space}
    return check_setting(space, values, where=f"{where}: the defaults (trial 0)")


def look_up(config: Mapping[str, Any], name: str, *, where: str) -> Any:
    """The value of a dotted name. Raises UserError with near names where there is none."""
    node: Any = config
    for number, key in enumerate(parts := name.split(".")):
        if isinstance(node, dict) and key not in node and isinstance(node.get("init_args"), dict):
            node = node["init_args"]
        if not isinstance(node, dict) or key not in node:
            above = ".".join(parts[:number]) or "the config"
            there = list(node) if isinstance(node, dict) else []
            near = get_close_matches(key, there, n=1)
            hint = f"; did you mean {near[0]}?" if near else (f"; it has {', '.join(there)}" if there else "")
            raise UserError(
                f"{where}: space.{name}: {above} has no field {key!r}{hint}, or give its value under defaults"
            )
        node = node[key]
    return node
