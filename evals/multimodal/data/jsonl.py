"""Questions in this suite's own layout, for data sets whose official ones it does not read: one object a line.

Fields:
    id: number or text, single in the file.
    image: the picture's path, relative to the folder of pictures, with "/".
    question: text; "" or not there for captions.
    answers: list of texts: each answer that was given, or each reference caption. Not with `choices`.
    choices: list of texts, two or more; they are written behind the question on lines of their own ("A. red").
    answer: with `choices`: the letter of the right one, or its index from 0. Not without.
    kind: what results are broken down by; may be absent.
    group: examples with one group count together; may be absent. MME's metric pairs a picture's questions by kind and group.
    hint: text that is put on lines of its own in front of the question; may be absent.

Lines without answers (`answers` or `answer` absent or empty) are left out and counted. An example for each data set, and what
fills it of the official release; they are wrapped here, each is one line in a file.

OK-VQA: mscoco_val2014_annotations.json with its questions, which `read_vqa_v2` reads as they are. answers: the ten
answers[].answer; kind: the name that question_types has for question_type.
    {"id": 2971475, "image": "COCO_val2014_000000297147.jpg", "question": "What sport can you use this for?",
     "answers": ["race", "race", "motocross"], "kind": "Vehicles and Transportation"}
DocVQA: val_v1.0_withQT.json, data[]. id: questionId; kind: question_types[0].
    {"id": 49153, "image": "documents/pybv0228_81.png", "question": "What is the actual value per 1000, during 1975?",
     "answers": ["0.28"], "kind": "figure/diagram"}
InfoVQA: infographicsVQA_val_v1.0_withQT.json, data[]. id: questionId; image: image_local_name; kind: answer_type[0].
    {"id": 98313, "image": "38609.jpeg", "question": "Which platform is used most?", "answers": ["twitter", "Twitter"],
     "kind": "single span"}
ChartQA: test_human.json and test_augmented.json. image: imgname; question: query; answers: label; kind: which of the two files;
id: that and the place in it, since they have none.
    {"id": "human/0", "image": "41699051005347.png", "question": "How many food items are shown in the bar graph?",
     "answers": ["14"], "kind": "human"}
ScienceQA: problems.json, those with an image. id: the key; image: SPLIT/KEY/image; answer: as it is, an index; kind: subject.
    {"id": 5, "image": "test/5/image.png", "question": "Which rhetorical appeal is primarily used in this ad?",
     "choices": ["ethos", "pathos", "logos"], "answer": 0, "kind": "language science", "hint": "Read the ad."}
MME: CATEGORY/PICTURE.txt, two lines of question, tab, answer. kind: the category; group: the picture.
    {"id": "color/000000012120/0", "image": "color/000000012120.jpg", "kind": "color", "group": "000000012120",
     "question": "Is there a red coat in the image? Please answer yes or no.", "answers": ["Yes"]}
SEED: SEED-Bench.json, questions[] with data_type "image". id: question_id; image: data_id; choices: choice_a to choice_d; kind:
the name that question_type has for question_type_id.
    {"id": "101669", "image": "1454426_2591111986", "question": "How many towels are in the image?",
     "choices": ["One", "Two", "Three", "Four"], "answer": "A", "kind": "Instances Counting"}
POPE: coco_pope_random.json, _popular and _adversarial, one object a line. question: text; answers: label; kind: which of the
three files; id: that and question_id, since each begins at 1.
    {"id": "random/1", "image": "COCO_val2014_000000310196.jpg", "question": "Is there a snowboard in the image?",
     "answers": ["yes"], "kind": "random"}
TextCaps: TextCaps_0.1_val.json, data[], a line for each image_id, which is its id. answers: reference_strs.
    {"id": "a8eec77e0b8bd9c4", "image": "a8eec77e0b8bd9c4.jpg", "answers": ["A page of a book.", "A book lies open."]}
NoCaps: nocaps_val_4500_captions.json, a line for each of images[]. image: file_name; answers: the captions that annotations[] has
for it; kind: domain.
    {"id": 0, "image": "0013ea2087020901.jpg", "answers": ["A baby stands by a fence.", "A child is outside."],
     "kind": "in-domain"}
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from evals.data.files import did_you_mean, existing_file
from evals.multimodal.data.pictures import PictureTree
from evals.multimodal.data.question_set import Asked, Json, QuestionSet, gather, id_of, text_of, texts_of, with_hint
from evals.multimodal.examples import LETTERS
from evals.multimodal.metrics.choices import on_lines
from pretrain.data.storage import one_line
from pretrain.types import UserError

FIELDS = ("id", "image", "question", "answers", "choices", "answer", "kind", "group", "hint")
_WANTED = 'one object a line, {"id": 1, "image": "a.jpg", "question": "...", "answers": ["..."]}'


def read_jsonl(file: Path, images: Path | None = None, *, name: str, split: str) -> QuestionSet:
    """Questions or captions in the layout that this module documents.

    Args:
        file: of one object a line; empty lines are nothing.
        images: folder that `image` is relative to; that of `file` where None.
        name: of the task.
        split: what is scored.

    Raises:
        UserError: with the number of the line: no JSON, an unknown field, a value that cannot be meant, an id that is there
            twice; see :func:`gather`.
    """
    path = existing_file(Path(file).expanduser(), wanted=_WANTED)
    root = path.parent if images is None else images
    shelf = PictureTree(root, wanted=f"the folder that `image` in {path.name} is relative to")
    return gather(_read(path), shelf, source=path, name=name, split=split)


def _read(path: Path) -> Iterator[Asked]:
    lines: dict[str, int] = {}
    for number, entry in _entries(path):
        where = f"{path}: line {number}"
        asked = _asked(entry, where)
        if (earlier := lines.setdefault(asked.example_id, number)) != number:
            raise UserError(
                f"{where}: id {asked.example_id!r} is that of line {earlier} too; each line needs one of its own"
            )
        yield asked


def _entries(path: Path) -> Iterator[tuple[int, Json]]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _parsed(line, f"{path}: line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({one_line(error)}); wanted: {_WANTED}") from error


def _parsed(line: str, where: str) -> Json:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON ({one_line(error)}); wanted: {_WANTED}") from error
    if not isinstance(entry, dict):
        raise UserError(f"{where} holds a {type(entry).__name__}, not an object; wanted: {_WANTED}")
    if unknown := [field for field in entry if field not in FIELDS]:
        near = did_you_mean(unknown[0], FIELDS)
        raise UserError(f"{where}: field {unknown[0]!r} is unknown{near}; known are {', '.join(FIELDS)}")
    return entry


def _asked(entry: Json, where: str) -> Asked:
    example_id, image = id_of(entry, "id", where), text_of(entry, "image", where)
    parts = PurePosixPath(image)
    if parts.is_absolute() or ".." in parts.parts or "\0" in image:
        raise UserError(f"{where}: image is {image!r:.60}; it must be a path below the folder of pictures")
    question, kind, group, hint = (_optional(entry, field, where) for field in ("question", "kind", "group", "hint"))
    choices, answers = texts_of(entry, "choices", where), texts_of(entry, "answers", where)
    if not choices:
        if "answer" in entry:
            raise UserError(f"{where}: answer is for lines with choices; give answers, a list of texts")
        return Asked(example_id, image, with_hint(hint, question), answers, kind, group=group)
    if "answers" in entry:
        raise UserError(f"{where}: answers is for lines without choices; give answer, a letter or an index from 0")
    if not 2 <= len(choices) <= len(LETTERS) or not all(choice.strip() for choice in choices):
        raise UserError(f"{where}: choices is {list(choices)!r:.60}; it must be 2 to {len(LETTERS)} texts, none empty")
    asked = on_lines(with_hint(hint, question), choices)
    return Asked(example_id, image, asked, _letter(entry.get("answer"), choices, where), kind, choices, group)


def _optional(entry: Json, field: str, where: str) -> str:
    value = entry.get(field)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {field} is {value!r:.60}; it must be a text")
    return (value or "").strip()


def _letter(answer: Any, choices: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The right choice's letter; nothing where no answer is given."""
    letters = LETTERS[: len(choices)]
    if answer is None or answer == "":
        return ()
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return (letters[answer],)
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in letters:
        return (answer.strip().upper(),)
    raise UserError(
        f"{where}: answer is {answer!r:.40}; it must be a letter from A to {letters[-1]} or an index from 0 to "
        f"{len(choices) - 1}"
    )
