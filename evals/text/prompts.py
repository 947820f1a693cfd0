"""Wordings of classes: templates and names from `configs/evals/prompts/*.yaml`, or those that open_clip ships for ImageNet."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from evals.configs import config_names, find_config, read_yaml
from pretrain.types import UserError

PROMPTS = Path(__file__).parents[2] / "configs" / "evals" / "prompts"
#: What stands in for the class's name, and for "a" or "an" in front of it.
_NAME, _ARTICLE = "{}", "{a}"
#: What `templates` may name instead of a list, in open_clip.zero_shot_metadata.
_OPEN_CLIP_TEMPLATES = {
    "open_clip:openai_imagenet": "OPENAI_IMAGENET_TEMPLATES",
    "open_clip:simple_imagenet": "SIMPLE_IMAGENET_TEMPLATES",
}
_OPEN_CLIP_NAMES = "open_clip:imagenet"


@dataclass(frozen=True)
class PromptConfig:
    """How classes are worded.

    Attributes:
        name: of the file.
        templates: sentences with `{}` for the class's name and, where wanted, `{a}` for its article.
        class_names: names in place of the data set's, by label; None takes the data set's.
    """

    name: str
    templates: tuple[str, ...]
    class_names: tuple[str, ...] | None = None

    def word(self, classes: Sequence[str]) -> list[list[str]]:
        """For each class its wordings, one of each template; underscores in names become spaces.

        Raises:
            UserError: names that are not as many as the classes.
        """
        names = classes if self.class_names is None else self.class_names
        if len(names) != len(classes):
            raise UserError(
                f"prompts {self.name}: class_names has {len(names)} names, the data set has {len(classes)} classes; "
                "choose other prompts with --prompts"
            )
        return [[_fill(template, name.replace("_", " ")) for template in self.templates] for name in names]


def _fill(template: str, name: str) -> str:
    article = "an" if name[:1].lower() in tuple("aeiou") else "a"
    return template.replace(_ARTICLE, article).replace(_NAME, name)


def _open_clip(constant: str) -> Sequence[Any]:
    from open_clip import zero_shot_metadata  # takes seconds, and most evaluations do not need it

    return getattr(zero_shot_metadata, constant)


def _templates(value: object, path: Path) -> tuple[str, ...]:
    if isinstance(value, str):
        if value not in _OPEN_CLIP_TEMPLATES:
            known = ", ".join(_OPEN_CLIP_TEMPLATES)
            raise UserError(f"{path}: templates: {value!r} is unknown; give a list of sentences or one of {known}")
        return tuple(template(_NAME) for template in _open_clip(_OPEN_CLIP_TEMPLATES[value]))
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise UserError(
            f"{path}: templates: {value!r:.80} is no list of sentences; give one or more, each with {_NAME}"
        )
    for text in value:
        if text.count(_NAME) != 1:
            raise UserError(f"{path}: templates: {text!r} must hold {_NAME} once, where the class's name goes")
    if len(set(value)) < len(value):
        raise UserError(f"{path}: templates: a sentence is there twice; give each once")
    return tuple(value)


def _class_names(value: object, path: Path) -> tuple[str, ...] | None:
    if value is None:
        return None
    if value == _OPEN_CLIP_NAMES:
        return tuple(_open_clip("IMAGENET_CLASSNAMES"))
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise UserError(
            f"{path}: class_names: {value!r:.80} is neither a list of names by label nor {_OPEN_CLIP_NAMES!r}"
        )
    return tuple(value)


def load_prompts(name: str) -> PromptConfig:
    """The prompts of that name in `configs/evals/prompts`, or in a .yaml file.

    Raises:
        UserError: an unknown name, or a file that is no such config.
    """
    path = find_config(name, PROMPTS, field="--prompts")
    content = read_yaml(path, [field.name for field in fields(PromptConfig) if field.name != "name"])
    return PromptConfig(
        path.stem, _templates(content.get("templates"), path), _class_names(content.get("class_names"), path)
    )


def default_prompts(dataset: str) -> PromptConfig:
    """The prompts that are named as the data set, or as what stands in front of its layout (imagenet1k_parquet); else generic."""
    names = config_names(PROMPTS)
    return load_prompts(next((name for name in (dataset, dataset.split("_")[0]) if name in names), "generic"))
