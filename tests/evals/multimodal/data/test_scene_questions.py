"""Scenes' questions against the scenes themselves: every answer is worked out anew, from the question's words."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from evals.detection.scene_folder import SCENE_SEED
from evals.multimodal.data.scene_questions import (
    KINDS,
    QUESTION_SEED,
    ScenePictures,
    scene_examples,
    scene_instructions,
)
from evals.multimodal.metrics.choices import circular_scores
from evals.multimodal.metrics.vqa import vqa_scores
from evals.scenes import EVAL_SEED
from pretrain.data.scene_render import render
from pretrain.data.scene_text import questions
from pretrain.data.scenes import BACKGROUND_COLORS, COLORS, SHAPES, TEXTURES, draw_scene
from pretrain.rng import draw_rng
from pretrain.types import UserError

LEVELS = {"one": 1, "two": 1, "three": 1, "word": 1, "crowd": 1}
NUM = 150


def asked(kind, **options):
    options = {"split": "test", "num": NUM, "img_size": 32, "levels": LEVELS, "name": f"scenes_{kind}"} | options
    return scene_examples(kind, **options)


def learned(**options):
    options = {"split": "train", "num": NUM, "img_size": 32, "levels": LEVELS, "name": "scenes"} | options
    return scene_instructions(**options)


def error_of(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def cell(obj) -> str:
    """Of a 3 x 3 grid."""
    row = ["top", "", "bottom"][min(2, int(3 * obj.center_y))]
    column = ["left", "", "right"][min(2, int(3 * obj.center_x))]
    return f"{row} {column}".strip() or "centre"


def one(objects, **wanted):
    """The only object with these attributes."""
    (found,) = [obj for obj in objects if all(getattr(obj, name) == value for name, value in wanted.items())]
    return found


BESIDE = {
    "to the left of": lambda a, b: a.center_x < b.center_x,
    "to the right of": lambda a, b: a.center_x > b.center_x,
    "above": lambda a, b: a.center_y < b.center_y,
    "below": lambda a, b: a.center_y > b.center_y,
}


def answer_of(scene, question) -> str:
    """What is true of a scene, found by looking at the scene's description."""
    objects = scene.objects
    largest = max(objects, key=lambda obj: obj.diameter)
    fixed = {
        "what colour is the largest shape?": largest.color,
        "what shape is the largest object?": largest.shape,
        "what colour is the background?": scene.background.color,
        "how many shapes are there?": str(len(objects)),
    }
    if question in fixed:
        return fixed[question]
    if found := re.fullmatch(r"what shape is the (\w+) object\?", question):
        return one(objects, color=found[1]).shape
    if found := re.fullmatch(r"what colour is the (\w+)\?", question):
        return one(objects, shape=found[1]).color
    if found := re.fullmatch(r"what pattern does the (\w+) (\w+) have\?", question):
        return one(objects, color=found[1], shape=found[2]).texture
    if found := re.fullmatch(r"how many (\w+) shapes are there\?", question):
        return str(sum(obj.color == found[1] for obj in objects))
    if found := re.fullmatch(r"how many (\w+?)(?:es|s) are there\?", question):
        shape = next(shape for shape in SHAPES if found[1] in (shape, shape.removesuffix("e")))
        return str(sum(obj.shape == shape for obj in objects))
    if found := re.fullmatch(r"is there an? (\w+) (\w+)\?", question):
        return "yes" if found.groups() in {(obj.color, obj.shape) for obj in objects} else "no"
    if found := re.fullmatch(r"where is the (\w+) (\w+)\?", question):
        return cell(one(objects, color=found[1], shape=found[2]))
    if found := re.fullmatch(r"is the (\w+) (\w+) (.+) the (\w+) (\w+)\?", question):
        a, b = one(objects, color=found[1], shape=found[2]), one(objects, color=found[4], shape=found[5])
        return "yes" if BESIDE[found[3]](a, b) else "no"
    if question in ("what is written in the picture?", "what does the text say?"):
        return scene.text.content.lower()
    assert question == "what is the first character of the text?", question
    return scene.text.content[0].lower()


WORDS = {
    "colour": COLORS,
    "shape": SHAPES,
    "pattern": TEXTURES,
    "background": BACKGROUND_COLORS,
    "count": tuple("012345"),
    "yes/no": ("yes", "no"),
    "position": tuple(f"{r} {c}".strip() or "centre" for r in ("top", "", "bottom") for c in ("left", "", "right")),
}


@pytest.mark.parametrize("kind", ["object", "text"])
def test_answers_are_true_and_kinds_say_what_is_asked(kind):
    made = asked(kind)
    for example in made.examples:
        scene = made.pictures.scene(example.picture)
        assert example.example_id.startswith(f"{scene.key}/")
        assert example.answers == (answer_of(scene, example.question),) * 10
        assert (example.choices, example.group) == ((), "")
        if kind == "object":
            assert example.answers[0] in WORDS[example.kind]
        else:
            assert (example.kind == "first character") == ("first character" in example.question)
    counts = Counter(example.kind for example in made.examples)
    assert set(counts) == set(WORDS if kind == "object" else ("string", "first character"))
    assert made.synthetic
    assert (made.name, made.split, len(made.pictures)) == (f"scenes_{kind}", "test", NUM)
    assert vqa_scores(made.examples, [example.answers[0] for example in made.examples]).values == {"vqa_accuracy": 100}


def test_choices_are_rotated_and_their_letters_true():
    made = asked("choice")
    groups = defaultdict(list)
    for example in made.examples:
        groups[example.group].append(example)
    assert len(groups) == NUM
    for group, members in groups.items():
        assert [member.example_id for member in members] == [f"{group}#{shift}" for shift in range(4)]
        first = members[0].choices
        for shift, member in enumerate(members):
            scene = made.pictures.scene(member.picture)
            assert member.choices == tuple(np.roll(first, -shift).tolist())
            bare, a, b, c, d = re.fullmatch(r"(.+\?) a\. (\w+) b\. (\w+) c\. (\w+) d\. (\w+)", member.question).groups()
            assert (a, b, c, d) == member.choices
            (letter,) = member.answers
            assert member.choices["abcd".index(letter)] == answer_of(scene, bare)
            assert (member.kind == "colour") == (bare == "what colour is the largest shape?")
            assert set(member.choices) < set(WORDS[member.kind])
        # the right choice stands at each letter once
        assert sorted(member.answers[0] for member in members) == ["a", "b", "c", "d"]
    scores = circular_scores(made.examples, [example.answers[0] for example in made.examples])
    assert scores.values == {"circular": 100, "vanilla": 100}
    # always the same letter is right once in four, and so never all round
    assert circular_scores(made.examples, ["a"] * len(made)).values["circular"] == 0


def test_one_call_gives_all_kinds_of_a_scene():
    sets = {kind: asked(kind, split="train") for kind in KINDS}
    assert len({one.pictures.pictures_identity() for one in sets.values()}) == 1
    assert len({one.identity() for one in sets.values()}) == 3
    taught = learned()
    assert taught.pictures.pictures_identity() == sets["object"].pictures.pictures_identity()
    assert taught.independent
    assert taught.synthetic
    assert dict(taught.repaired) == {}
    by_scene = defaultdict(dict)  # of a question with choices all rotations are taught, in their order
    for one in sets.values():
        for example in one.examples:
            key, number = example.example_id.split("/")
            place, _, shift = number.partition("#")
            by_scene[key][int(place), int(shift or 0)] = (example.question, example.answers[0])
    for number, conversation in enumerate(taught.conversations):
        assert conversation.picture == number
        assert conversation.conversation_id == taught.pictures.key(number)
        turns = by_scene[conversation.conversation_id]
        assert conversation.turns == tuple(turns[place] for place in sorted(turns))


def test_the_wording_is_a_function_of_seed_split_and_number():
    assert asked("object").examples == asked("object").examples
    assert asked("object").identity() == asked("object").identity()
    few = asked("object", num=10)
    assert few.examples == asked("object").examples[: len(few)]
    pictures = few.pictures
    rng = draw_rng(QUESTION_SEED, "multimodal/questions/test", 3)
    wanted = [question.question for question in questions(pictures.scene(3), rng) if question.kind == "object"]
    assert [example.question for example in few.examples if example.picture == 3] == wanted
    assert learned(num=10).identity() == learned(num=10).identity()
    assert learned(num=10).identity() != learned(num=10, seed=QUESTION_SEED + 1).identity()


def test_only_some_kinds_can_be_learned_and_scenes_without_are_counted():
    taught = learned(kinds=("text",))
    scenes = [taught.pictures.scene(index) for index in range(NUM)]
    with_text = [index for index, scene in enumerate(scenes) if scene.text]
    assert 0 < len(with_text) < NUM
    assert [conversation.picture for conversation in taught.conversations] == with_text
    assert dict(taught.repaired) == {"scenes without such a question": NUM - len(with_text)}
    for conversation in taught.conversations:
        for question, answer in conversation.turns:
            assert answer == answer_of(scenes[conversation.picture], question)


def test_pictures_are_drawn():
    pictures = ScenePictures("val", num=3, img_size=48, levels=LEVELS, seed=5, name="x")
    scene = draw_scene(5, "val", 2, LEVELS)
    assert np.array_equal(np.asarray(pictures.load(2)), render(scene, 48))
    assert (pictures.load(2).mode, pictures.key(2)) == ("RGB", scene.key)
    assert (pictures.split, pictures.synthetic, pictures.label_N.tolist()) == ("val", True, [0, 0, 0])


def test_the_identity_names_what_decides_the_pictures():
    def identity(split="test", **options):
        options = {"num": 5, "img_size": 32, "levels": LEVELS, "seed": 1, "name": "x"} | options
        return ScenePictures(split, **options).pictures_identity()

    same = [
        identity(),
        identity(name="y"),
        identity(levels=dict(reversed(LEVELS.items()))),
        identity(levels=dict.fromkeys(LEVELS, 1.0)),
    ]
    assert len(set(same)) == 1
    assert identity(levels={"one": 1, "two": 0}) == identity(levels={"one": 1})
    changed = [
        identity("val"),
        identity(num=6),
        identity(img_size=40),
        identity(levels={"one": 1}),
        identity(levels=LEVELS | {"one": 2}),
        identity(seed=2),
    ]
    assert len({*changed, same[0]}) == 7


def test_scenes_are_none_that_models_are_trained_on():
    assert len({QUESTION_SEED, SCENE_SEED, EVAL_SEED}) == 3
    assert QUESTION_SEED > 1000
    seen = set()
    for seed in (0, 1, 2, EVAL_SEED, SCENE_SEED):
        for split in ("train", "val", "test"):
            seen |= {draw_scene(seed, split, index, LEVELS).objects for index in range(40)}
    own = {
        split: {
            ScenePictures(split, num=40, img_size=32, levels=LEVELS, seed=QUESTION_SEED, name="x").scene(n).objects
            for n in range(40)
        }
        for split in ("train", "test")
    }
    assert len(own["train"]) == len(own["test"]) == 40
    assert not seen & (own["train"] | own["test"])
    assert not own["train"] & own["test"]


def test_wrong_values():
    assert (
        error_of(asked, "colour")
        == "scenes_colour: kind='colour' of scenes' questions is unknown; there are object, text, choice"
    )
    assert "split='tset' is no split of scenes (did you mean 'test'?)" in error_of(asked, "object", split="tset")
    assert "scene level 'four' is unknown" in error_of(asked, "object", levels={"four": 1})
    assert "add up to 0" in error_of(asked, "object", levels={})
    assert "num=0 must be at least 1" in error_of(asked, "object", num=0)
    assert "img_size=0 must be at least 1" in error_of(asked, "object", img_size=0)
    assert "seed=-1 must be at least 0" in error_of(asked, "object", seed=-1)
    assert "kinds=[] of scenes' questions; give one or more" in error_of(learned, kinds=())
    assert "each once" in error_of(learned, kinds=("text", "text"))
    assert "kind='words'" in error_of(learned, kinds=("text", "words"))
    silent = "none of 9 scenes of the levels one, two has a question of kind text; strings are written in word, crowd"
    levels = {"one": 1, "two": 1, "word": 0}
    assert error_of(asked, "text", num=9, levels=levels) == f"scenes_text: {silent}"
    assert error_of(learned, kinds=("text",), num=9, levels=levels) == f"scenes: {silent}"
