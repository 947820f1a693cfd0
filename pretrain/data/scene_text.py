"""What is said about scenes: captions, referring expressions, questions with answers. All lower case, all true.

Every function takes the generator that settles its wording; the scene itself settles what is true.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.data.scenes import (
    BACKGROUND_COLORS,
    COLORS,
    SHAPES,
    SIZES,
    TEXTURES,
    Background,
    Draws,
    Scene,
    SceneObject,
)
from pretrain.types import UserError

STYLES = ("full", "alt", "short")
_SIZE_WORDS = {"small": ("small", "little"), "medium": ("medium-sized", "medium"), "large": ("large", "big")}
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
_NUMBERS = ("no", "one", "two", "three", "four", "five")
#: Positions closer than this to each other, or to a line of the grid, are not asked about (fraction of the side).
_CLEAR = 0.05


@dataclass(frozen=True)
class Question:
    """A question with its only true answer.

    Attributes:
        question: lower case, with a question mark; lettered choices follow it.
        answer: lower case; the letter for a question with choices.
        kind: "object", "text" or "choice".
        answer_type: VQAv2's "yes/no", "number" or "other".
        choices: what the letters a, b, c, d stand for; empty without choices.
    """

    question: str
    answer: str
    kind: str
    answer_type: str
    choices: tuple[str, ...] = ()


def place_name(obj: SceneObject) -> str:
    """Cell of a 3 x 3 grid that holds the object's centre: "top left", "top", ..., "centre", ..., "bottom right"."""
    row, column = _ROWS[min(int(obj.center_y * 3), 2)], _COLUMNS[min(int(obj.center_x * 3), 2)]
    if row == "middle":
        return column
    return row if column == "centre" else f"{row} {column}"


def _place_phrase(place: str) -> str:
    if place == "centre":
        return "in the centre"
    return f"on the {place}" if place in ("left", "right") else f"at the {place}"


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _name(obj: SceneObject) -> str:
    return f"{obj.color} {obj.shape}"


def _full_name(draws: Draws, obj: SceneObject) -> str:
    """Size, texture unless solid, colour, shape, with the article."""
    texture = "" if obj.texture == "solid" else f"{obj.texture} "
    return _with_article(f"{draws.choice(_SIZE_WORDS[obj.size])} {texture}{_name(obj)}")


def _background_words(draws: Draws, background: Background) -> str:
    kind = {"plain": draws.choice(("", "plain ")), "gradient": "shaded "}.get(background.kind, f"{background.kind} ")
    return f"{kind}{background.color}"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _full_caption(draws: Draws, scene: Scene) -> str:
    first, *others = (f"{_full_name(draws, obj)} {_place_phrase(place_name(obj))}" for obj in scene.objects)
    background = _background_words(draws, scene.background)
    opening = draws.choice(("", "", "there is ", "a picture of ", "we see ", "the picture shows "))
    if draws.unit() < 0.3:
        text = f"{opening}{first} on a {background} background"
        text += f"; there {'is' if len(others) == 1 else 'are'} also {_listed(others)}" if others else ""
    else:
        joint = draws.choice((", with ", " with ", ", together with ", " and "))
        text = opening + first + (joint + _listed(others) if others else "")
        ending = (f", on a {background} background", f"; the background is {background}")
        text += draws.choice(ending)
    if scene.text:
        text += draws.choice(("; ", ". ", ", and ")) + f"the text says {scene.text.content.lower()}"
    return text


def _short_caption(scene: Scene) -> str:
    text = ", ".join(_with_article(_name(obj)) for obj in scene.objects)
    return f"{text}; {scene.text.content.lower()}" if scene.text else text


_KNOWN_WORDS = frozenset((*COLORS, *SHAPES, *TEXTURES, *BACKGROUND_COLORS))


def _with_typo(draws: Draws, text: str) -> str:
    """Drops or doubles a letter of a word, or swaps two; never so that it names another colour or shape."""
    words = text.split(" ")
    candidates = [k for k, word in enumerate(words) if word.isalpha() and len(word) > 2]
    if not candidates:
        return text
    k = draws.choice(candidates)
    word, at = words[k], draws.choice(range(1, len(words[k]) - 1))
    typo = draws.choice(
        (
            word[:at] + word[at + 1 :],
            word[: at + 1] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        )
    )
    words[k] = word if typo in _KNOWN_WORDS else typo
    return " ".join(words)


def _alt_text(draws: Draws, scene: Scene) -> str:
    named = [_name(obj) for obj in scene.objects]
    draw = draws.unit()
    if draw < 0.45 or (draw < 0.8 and len(named) == 1):
        text = draws.choice((named[0], named[0], _with_article(named[0]), scene.largest.shape))
    elif draw < 0.8:
        text = f"{named[0]}{draws.choice((' and ', ', ', ' with '))}{_with_article(draws.choice(named[1:]))}"
    else:
        text = f"{named[0]} {scene.background.color}"
        text = draws.choice((text, f"{_NUMBERS[len(named)]} shape{'s' if len(named) > 1 else ''}, {named[0]}"))
    if draws.unit() < 0.15:
        text = _with_typo(draws, text)
    if scene.text and draws.unit() < 0.4:
        text += f" {scene.text.content.lower()}"
    if draws.unit() < 0.25:
        junk = draws.choice(
            ("stock photo", "wallpaper", "free download", "clipart", f"img_{draws.choice(range(9999)):04d}")
        )
        text = draws.choice((f"{text} {junk}", f"{text} - {junk}", f"{junk} {text}"))
    return text


def captions(scene: Scene, rng: np.random.Generator) -> dict[str, str]:
    """Two captions: "full", a complete description, largest object first; "alt", short, partial, noisy, never false."""
    draws = Draws(rng)
    return {"full": _full_caption(draws, scene), "alt": _alt_text(draws, scene)}


def caption(scene: Scene, style_weights: Mapping[str, float], rng: np.random.Generator) -> str:
    """One caption in a style drawn by weight.

    Args:
        scene: what is described.
        style_weights: weights of "full", "alt" and "short" (colour and shape of each object, then the text).
        rng: settles style and wording.

    Raises:
        UserError: unknown style, or no style with a weight above 0.
    """
    known = ", ".join(STYLES)
    for style in style_weights:
        if style not in STYLES:
            raise UserError(f"caption style {style!r} is unknown; known styles: {known}")
    weights = [style_weights.get(style, 0.0) for style in STYLES]
    if min(weights) < 0 or not sum(weights) > 0:
        raise UserError(
            f"caption style weights {dict(style_weights)}: none may be negative, one of {known} must be above 0"
        )
    draws = Draws(rng)
    style = draws.weighted(STYLES, weights)
    if style == "short":
        return _short_caption(scene)
    return _full_caption(draws, scene) if style == "full" else _alt_text(draws, scene)


_NOUNS = (
    (),
    ("shape",),
    ("color",),
    ("color", "shape"),
    ("size", "shape"),
    ("size", "color"),
    ("texture", "shape"),
    ("texture", "color", "shape"),
)
_RELATIONS = ("to the left of", "to the right of", "above", "below")
_EXTREMES = ("leftmost", "rightmost", "topmost", "bottommost")


def _along(obj: SceneObject, direction: int) -> float:
    """How far to the left, right, top, bottom (direction 0 to 3, the order of the relations) an object lies."""
    value = obj.center_x if direction < 2 else obj.center_y
    return -value if direction % 2 == 0 else value


def _clear_of_grid(obj: SceneObject) -> bool:
    return all(abs(c - line) > _CLEAR for c in (obj.center_x, obj.center_y) for line in (1 / 3, 2 / 3))


def _is_named(obj: SceneObject, scene: Scene) -> bool:
    """Whether colour and shape single the object out."""
    return sum(_name(other) == _name(obj) for other in scene.objects) == 1


def _unique_expressions(scene: Scene, target: SceneObject) -> tuple[list[str], list[str], list[str]]:
    """Expressions that hold for one object only: by attributes; by extremes or places; by relations."""
    by_attributes, by_position, by_relation = [], [], []
    for attributes in _NOUNS:
        if "texture" in attributes and target.texture == "solid":
            continue
        values = [getattr(target, attribute) for attribute in attributes]
        group = [obj for obj in scene.objects if [getattr(obj, attribute) for attribute in attributes] == values]
        noun = " ".join(values if "shape" in attributes else [*values, "shape"])
        rivals = [obj for obj in group if obj is not target]
        if not rivals and attributes:
            by_attributes.append(f"the {noun}")
        by_position += _positions(target, rivals, noun) if rivals else []
        for anchor in scene.objects:
            if attributes and anchor is not target and anchor not in rivals and _is_named(anchor, scene):
                by_relation += _relations(target, rivals, anchor, noun)
    return by_attributes, by_position, by_relation


def _positions(target: SceneObject, rivals: Sequence[SceneObject], noun: str) -> Iterator[str]:
    for direction, word in enumerate(_EXTREMES):
        if all(_along(target, direction) > _along(obj, direction) + _CLEAR for obj in rivals):
            yield f"the {word} {noun}"
    if not noun.startswith(tuple(SIZES)):
        ranks = list(SIZES)
        difference = [ranks.index(target.size) - ranks.index(obj.size) for obj in rivals]
        if min(difference) > 0:
            yield f"the largest {noun}"
        if max(difference) < 0:
            yield f"the smallest {noun}"
    place = place_name(target)
    if all(_clear_of_grid(obj) for obj in (target, *rivals)) and place not in map(place_name, rivals):
        yield f"the {noun} {_place_phrase(place)}"


def _relations(target: SceneObject, rivals: Sequence[SceneObject], anchor: SceneObject, noun: str) -> Iterator[str]:
    for direction, word in enumerate(_RELATIONS):
        line = _along(anchor, direction)
        # a rival just short of the line could be meant as well
        if _along(target, direction) > line + 2 * _CLEAR and all(_along(obj, direction) < line for obj in rivals):
            yield f"the {noun} {word} the {_name(anchor)}"


def referring_expressions(scene: Scene, rng: np.random.Generator) -> list[tuple[int, list[str]]]:
    """For each object that can be singled out: its index in `scene.objects`, and 1 to 3 expressions of different kinds.

    Each expression holds for that object and for no other.
    """
    draws = Draws(rng)
    found = []
    for index, obj in enumerate(scene.objects):
        chosen = [draws.choice(expressions) for expressions in _unique_expressions(scene, obj) if expressions]
        if chosen:
            found.append((index, chosen))
    return found


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Questions about a scene, each with exactly one true answer; about a written string only where there is one."""
    draws = Draws(rng)
    asked = [*_object_questions(draws, scene), *_position_questions(draws, scene)]
    if scene.text:
        asked += _text_questions(draws, scene.text.content.lower())
    return [*asked, _choice_question(draws, scene)]


def _object_questions(draws: Draws, scene: Scene) -> Iterator[Question]:
    objects, largest = scene.objects, scene.largest
    yield Question("what colour is the largest shape?", largest.color, "object", "other")
    yield Question("what shape is the largest object?", largest.shape, "object", "other")
    yield Question("what colour is the background?", scene.background.color, "object", "other")
    obj = draws.choice(objects)
    if sum(other.color == obj.color for other in objects) == 1:
        yield Question(f"what shape is the {obj.color} object?", obj.shape, "object", "other")
    if sum(other.shape == obj.shape for other in objects) == 1:
        yield Question(f"what colour is the {obj.shape}?", obj.color, "object", "other")
    if _is_named(obj, scene):
        yield Question(f"what pattern does the {_name(obj)} have?", obj.texture, "object", "other")
    yield Question("how many shapes are there?", str(len(objects)), "object", "number")
    attribute, value = draws.choice((("color", obj.color), ("shape", obj.shape)))
    count = sum(getattr(other, attribute) == value for other in objects)
    noun = f"{value} shapes" if attribute == "color" else f"{value}{'es' if value == 'cross' else 's'}"
    yield Question(f"how many {noun} are there?", str(count), "object", "number")
    present = {_name(other) for other in objects}
    if draws.unit() < 0.5:
        yield Question(f"is there {_with_article(draws.choice(sorted(present)))}?", "yes", "object", "yes/no")
    else:
        # of a colour or a shape that is there, so that neither alone gives the answer
        near = [f"{obj.color} {shape}" for shape in SHAPES] + [f"{color} {obj.shape}" for color in COLORS]
        absent = [name for name in near if name not in present]
        yield Question(f"is there {_with_article(draws.choice(absent))}?", "no", "object", "yes/no")


def _position_questions(draws: Draws, scene: Scene) -> Iterator[Question]:
    named = [obj for obj in scene.objects if _is_named(obj, scene)]
    placed = [obj for obj in named if _clear_of_grid(obj)]
    if placed:
        obj = draws.choice(placed)
        yield Question(f"where is the {_name(obj)}?", place_name(obj), "object", "other")
    direction = draws.choice(range(4))
    pairs = [
        (a, b)
        for a in named
        for b in named
        if a is not b and abs(_along(a, direction) - _along(b, direction)) > 2 * _CLEAR
    ]
    if pairs:
        a, b = draws.choice(pairs)
        answer = "yes" if _along(a, direction) > _along(b, direction) else "no"
        question = f"is the {_name(a)} {_RELATIONS[direction]} the {_name(b)}?"
        yield Question(question, answer, "object", "yes/no")


def _text_questions(draws: Draws, content: str) -> Iterator[Question]:
    asked = draws.choice(("what is written in the picture?", "what does the text say?"))
    yield Question(asked, content, "text", "number" if content.isdigit() else "other")
    if draws.unit() < 0.5:
        answer_type = "number" if content[0].isdigit() else "other"
        yield Question("what is the first character of the text?", content[0], "text", answer_type)


def _choice_question(draws: Draws, scene: Scene) -> Question:
    asked, names, answer = draws.choice(
        (
            ("what colour is the largest shape?", COLORS, scene.largest.color),
            ("what shape is the largest object?", SHAPES, scene.largest.shape),
        )
    )
    wrong = [name for name in names if name != answer]
    choices = [wrong.pop(draws.choice(range(len(wrong)))) for _ in range(3)]
    position = draws.choice(range(4))
    choices.insert(position, answer)
    lettered = " ".join(f"{letter}. {choice}" for letter, choice in zip("abcd", choices))
    return Question(f"{asked} {lettered}", "abcd"[position], "choice", "other", tuple(choices))
