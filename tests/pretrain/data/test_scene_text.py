"""The checks here evaluate the sentences with code of their own, never with the generator's."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest

from pretrain.data.scene_text import Question, caption, captions, questions, referring_expressions
from pretrain.data.scenes import (
    BACKGROUND_COLORS,
    COLORS,
    LEVELS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    draw_scene,
)
from pretrain.rng import draw_rng
from pretrain.types import UserError

ALL = dict.fromkeys(LEVELS, 1.0)
NUM = 1000
SIZE_WORDS = {
    "small": "small",
    "little": "small",
    "medium": "medium",
    "medium-sized": "medium",
    "large": "large",
    "big": "large",
}
PLACES = {"left": "xl", "right": "xr", "top": "yt", "bottom": "yb"}


@cache
def scenes() -> tuple[Scene, ...]:
    return tuple(draw_scene(7, "train", index, ALL) for index in range(NUM))


def rng_of(scene: Scene, stream: str = "test"):
    return draw_rng(0, stream, scene.index)


def in_cell(obj: SceneObject, place: str) -> bool:
    """Whether the centre lies in the cell that words such as "top left" or "centre" name."""
    words = place.split()
    third = 1 / 3
    x_ok = (
        obj.center_x < third
        if "left" in words
        else obj.center_x > 2 * third
        if "right" in words
        else third <= obj.center_x <= 2 * third
    )
    y_ok = (
        obj.center_y < third
        if "top" in words
        else obj.center_y > 2 * third
        if "bottom" in words
        else third <= obj.center_y <= 2 * third
    )
    return x_ok and y_ok


OBJECT_PATTERN = re.compile(
    rf"an? (?P<size>{'|'.join(sorted(SIZE_WORDS, key=len, reverse=True))}) (?:(?P<texture>{'|'.join(TEXTURES)}) )?"
    rf"(?P<color>{'|'.join(COLORS)}) (?P<shape>{'|'.join(SHAPES)}) (?:at|on|in) the "
    r"(?P<place>[a-z]+(?: (?:left|right))?)"
)


def test_full_caption_names_every_object_truly_and_in_order():
    for scene in scenes():
        text = captions(scene, rng_of(scene))["full"]
        found = [match.groupdict() for match in OBJECT_PATTERN.finditer(text)]
        assert len(found) == len(scene.objects), text
        for said, obj in zip(found, scene.objects, strict=True):
            assert SIZE_WORDS[said["size"]] == obj.size
            assert (said["texture"] or "solid") == obj.texture
            assert (said["color"], said["shape"]) == (obj.color, obj.shape)
            assert in_cell(obj, said["place"]), (text, obj)


def test_full_caption_tells_background_and_text():
    for scene in scenes():
        text = captions(scene, rng_of(scene))["full"]
        about = re.search(r"on a ([a-z ]+) background|the background is ([a-z ]+)", text)
        words = next(filter(None, about.groups())).split(" and ")[0].split()
        assert [word for word in words if word in BACKGROUND_COLORS] == [scene.background.color]
        kind = scene.background.kind
        assert set(words) - {scene.background.color} <= {"shaded" if kind == "gradient" else kind}
        said = re.search(r"the text says (\S+)$", text)
        assert (said.group(1) if said else None) == (scene.text.content.lower() if scene.text else None)


def test_captions_are_short_clean_lower_case():
    wordings = set()
    for scene in scenes():
        for text in (*captions(scene, rng_of(scene)).values(), caption(scene, {"short": 1}, rng_of(scene))):
            assert text == text.lower() == " ".join(text.split())
            assert len(text.split()) <= 70
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
            wordings.add(text.split()[0])
    assert len(wordings) > 10


def test_alt_text_is_never_false_but_noisy():
    num_junk = num_partial = num_typo = 0
    for scene in scenes():
        text = captions(scene, rng_of(scene))["alt"]
        words = [re.sub(r"\W", "", word) for word in text.split()]
        pairs = {(o.color, o.shape) for o in scene.objects}
        for first, second in pairwise(words):
            if first in COLORS and second in SHAPES:
                assert (first, second) in pairs, text
        assert {word for word in words if word in COLORS} <= {o.color for o in scene.objects}
        assert {word for word in words if word in SHAPES} <= {o.shape for o in scene.objects}
        assert {word for word in words if word in BACKGROUND_COLORS} <= {scene.background.color}
        num_junk += bool(re.search("img_|stock|wallpaper|download|clipart", text))
        num_partial += sum(word in SHAPES for word in words) < len(scene.objects)
        known = {*COLORS, *SHAPES, *BACKGROUND_COLORS, "a", "an", "and", "with", "shape", "shapes", "one", "two"}
        known |= {"three", "four", "five", "stock", "photo", "wallpaper", "free", "download", "clipart", ""}
        written = {scene.text.content.lower()} if scene.text else set()
        num_typo += any(word not in known | written and not word.startswith("img_") for word in words)
    assert 0.15 * NUM < num_junk < 0.35 * NUM
    assert num_partial > 0.4 * NUM
    assert 0.05 * NUM < num_typo < 0.2 * NUM


def test_short_style_by_hand():
    scene = next(s for s in scenes() if len(s.objects) == 4 and s.text)
    named = ", ".join(f"{'an' if o.color == 'orange' else 'a'} {o.color} {o.shape}" for o in scene.objects)
    assert caption(scene, {"short": 1}, rng_of(scene)) == f"{named}; {scene.text.content.lower()}"


def test_wording_follows_from_the_generator_and_varies_with_it():
    scene = scenes()[2]
    weights = {"full": 1, "alt": 1}
    assert caption(scene, weights, draw_rng(0, "a", 1)) == caption(scene, weights, draw_rng(0, "a", 1))
    assert len({caption(scene, {"full": 1}, draw_rng(0, "a", k)) for k in range(30)}) > 15


def test_style_weights_set_the_shares():
    scene = next(s for s in scenes() if len(s.objects) == 3)
    short = caption(scene, {"short": 1}, draw_rng(0, "a", 0))
    drawn = [caption(scene, {"short": 3, "full": 1, "alt": 0}, draw_rng(0, "a", k)) == short for k in range(800)]
    # 600 expected, standard deviation 12
    assert abs(sum(drawn) - 600) < 60


@pytest.mark.parametrize("weights", [{"long": 1}, {}, {"full": 0}, {"full": -1, "alt": 2}])
def test_bad_style_weights_are_user_errors(weights):
    with pytest.raises(UserError, match="caption style"):
        caption(scenes()[0], weights, draw_rng(0, "a", 0))


EXPRESSION = re.compile(
    r"the (?:(?P<extreme>leftmost|rightmost|topmost|bottommost|largest|smallest) )?"
    rf"(?:(?P<size>{'|'.join(SIZES)}) )?(?:(?P<texture>{'|'.join(TEXTURES)}) )?(?:(?P<color>{'|'.join(COLORS)}) )?"
    rf"(?P<noun>shape|{'|'.join(SHAPES)})"
    r"(?: (?:at|on|in) the (?P<place>[a-z]+(?: (?:left|right))?))?"
    rf"(?: (?P<relation>to the left of|to the right of|above|below) the "
    rf"(?P<anchor>(?:{'|'.join(COLORS)}) (?:{'|'.join(SHAPES)})))?"
)
EXTREMES = {
    "leftmost": lambda o: o.center_x,
    "rightmost": lambda o: -o.center_x,
    "topmost": lambda o: o.center_y,
    "bottommost": lambda o: -o.center_y,
    "largest": lambda o: -o.diameter,
    "smallest": lambda o: o.diameter,
}
RELATIONS = {
    "to the left of": lambda o, a: o.center_x < a.center_x,
    "to the right of": lambda o, a: o.center_x > a.center_x,
    "above": lambda o, a: o.center_y < a.center_y,
    "below": lambda o, a: o.center_y > a.center_y,
}


def meant(scene: Scene, text: str) -> tuple[str, list[int]]:
    """The kind of an expression, and the indices of all objects for which it holds."""
    parts = EXPRESSION.fullmatch(text)
    assert parts, text
    found = [
        k
        for k, o in enumerate(scene.objects)
        if parts["noun"] in ("shape", o.shape)
        and parts["color"] in (None, o.color)
        and parts["texture"] in (None, o.texture)
        and parts["size"] in (None, o.size)
    ]
    if parts["extreme"]:
        key = EXTREMES[parts["extreme"]]
        values = sorted(key(scene.objects[k]) for k in found)
        # clear for a viewer, too: at least a pixel and a half at 32 pixels between the first and the second
        assert values[1] - values[0] > 0.045, text
        return "extreme", [k for k in found if key(scene.objects[k]) == values[0]]
    if parts["place"]:
        return "place", [k for k in found if in_cell(scene.objects[k], parts["place"])]
    if parts["relation"]:
        anchors = [o for o in scene.objects if f"{o.color} {o.shape}" == parts["anchor"]]
        assert len(anchors) == 1, text
        holds = RELATIONS[parts["relation"]]
        return "relation", [
            k for k in found if scene.objects[k] is not anchors[0] and holds(scene.objects[k], anchors[0])
        ]
    return "attributes", found


def test_referring_expressions_hold_for_one_object_only():
    kinds = Counter()
    num_objects = num_referred = 0
    for scene in scenes():
        referred = referring_expressions(scene, rng_of(scene))
        num_objects += len(scene.objects)
        num_referred += len(referred)
        assert len({index for index, _ in referred}) == len(referred)
        for index, expressions in referred:
            assert 1 <= len(set(expressions)) == len(expressions) <= 3
            for text in expressions:
                kind, found = meant(scene, text)
                assert found == [index], (text, scene.objects)
                kinds[kind] += 1
    assert min(kinds[kind] for kind in ("attributes", "extreme", "place", "relation")) > 50, kinds
    assert num_referred > 0.97 * num_objects


def test_twins_are_not_referred_to():
    scene = next(s for s in scenes() if len(s.objects) == 2)
    twin = scene.objects[0]
    twins = replace(scene, objects=(twin, replace(twin, rotation=0.0)))
    assert referring_expressions(twins, rng_of(scene)) == []


def all_questions() -> list[tuple[Scene, Question]]:
    return [(scene, question) for scene in scenes() for question in questions(scene, rng_of(scene))]


def derived(scene: Scene, question: str) -> str:
    """The answer, from the objects, by code of the test's own."""
    objects, biggest = scene.objects, max(scene.objects, key=lambda o: o.diameter)
    named = {f"{o.color} {o.shape}": o for o in objects}
    if question in ("what is written in the picture?", "what does the text say?"):
        return scene.text.content.lower()
    if question == "what is the first character of the text?":
        return scene.text.content.lower()[0]
    fixed = {
        "what colour is the largest shape?": biggest.color,
        "what shape is the largest object?": biggest.shape,
        "what colour is the background?": scene.background.color,
        "how many shapes are there?": str(len(objects)),
    }
    if question in fixed:
        return fixed[question]
    if match := re.fullmatch(r"how many (\w+?) shapes are there\?", question):
        return str([o.color for o in objects].count(match[1]))
    if match := re.fullmatch(r"how many (\w+) are there\?", question):
        return str([o.shape for o in objects].count("cross" if match[1] == "crosses" else match[1][:-1]))
    if match := re.fullmatch(r"is there an? (\w+ \w+)\?", question):
        return "yes" if match[1] in named else "no"
    if match := re.fullmatch(r"what shape is the (\w+) object\?", question):
        (answer,) = [o.shape for o in objects if o.color == match[1]]
        return answer
    if match := re.fullmatch(r"what colour is the (\w+)\?", question):
        (answer,) = [o.color for o in objects if o.shape == match[1]]
        return answer
    if match := re.fullmatch(r"what pattern does the (\w+ \w+) have\?", question):
        (answer,) = [o.texture for o in objects if f"{o.color} {o.shape}" == match[1]]
        return answer
    if match := re.fullmatch(r"where is the (\w+ \w+)\?", question):
        places = [f"{y} {x}" for y in ("top", "middle", "bottom") for x in ("left", "centre", "right")]
        (place,) = [p for p in places if in_cell(named[match[1]], p)]
        return {
            "top centre": "top",
            "bottom centre": "bottom",
            "middle left": "left",
            "middle right": "right",
            "middle centre": "centre",
        }.get(place, place)
    match = re.fullmatch(r"is the (\w+ \w+) (to the left of|to the right of|above|below) the (\w+ \w+)\?", question)
    assert match, question
    return "yes" if RELATIONS[match[2]](named[match[1]], named[match[3]]) else "no"


def test_answers_are_true():
    for scene, item in all_questions():
        if item.kind != "choice":
            assert item.answer == derived(scene, item.question), item
            assert item.choices == ()


def test_lettered_choices_hold_the_answer_once_at_a_uniform_place():
    letters = Counter()
    for scene, item in all_questions():
        if item.kind == "choice":
            stem, rest = re.fullmatch(r"(.*\?) (a\. .*)", item.question).groups()
            options = re.findall(r"([abcd])\. (\w+)", rest)
            assert tuple(name for _, name in options) == item.choices
            assert len(set(item.choices)) == 4
            assert [letter for letter, name in options if name == derived(scene, stem)] == [item.answer]
            letters[item.answer] += 1
    # 250 each expected, standard deviation 14
    assert sum(letters.values()) == NUM
    assert all(abs(letters[letter] - NUM / 4) < 60 for letter in "abcd")


def test_kinds_and_types_of_answers():
    kinds = Counter()
    presence = Counter()
    for scene, item in all_questions():
        kinds[item.kind] += 1
        if item.question.startswith(("is there", "is the")):
            assert item.answer_type == "yes/no"
        else:
            is_number = item.question.startswith("how many") or (item.kind == "text" and item.answer.isdigit())
            assert item.answer_type == ("number" if is_number else "other")
        if item.question.startswith("is there"):
            presence[item.answer] += 1
        if item.kind == "text":
            assert scene.text is not None
    written = sum(scene.text is not None for scene in scenes())
    assert written < kinds["text"] < 2 * written
    # 500 each expected, standard deviation 16
    assert abs(presence["yes"] - presence["no"]) < 130


def test_questions_of_a_scene_are_distinct():
    for scene in scenes():
        asked = [item.question for item in questions(scene, rng_of(scene))]
        assert len(set(asked)) == len(asked) >= 6
