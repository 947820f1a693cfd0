"""VQAv2's questions and annotations (visualqa.org/download), and what has their layout: OK-VQA, scenes."""

from collections.abc import Callable, Iterator
from pathlib import Path

from evals.multimodal.data.pictures import ImageName, PictureFolder, trailing_number
from evals.multimodal.data.question_set import (
    Asked,
    Json,
    QuestionSet,
    gather,
    read_json,
    records,
    text_of,
    whole_of,
)
from pretrain.types import UserError

_QUESTIONS = "VQAv2's questions, e.g. v2_OpenEnded_mscoco_val2014_questions.json"
_ANNOTATIONS = "VQAv2's annotations, e.g. v2_mscoco_val2014_annotations.json; the answers of test splits are not public"


def read_vqa_v2(questions: Path, annotations: Path, images: Path, *, name: str, split: str) -> QuestionSet:
    """A split of VQAv2 or of OK-VQA, with all the answers that people gave, ten a question.

    Blank answers among others stay, since the metric counts how many gave an answer. OK-VQA's `answer` is taken, as its own
    evaluation does, not its `raw_answer`. The kind is `answer_type` ("yes/no", "number", "other"), or `kind` where an annotation
    has that (scenes: "object", "text", "choice"). Pictures are found by the number that their stem ends in, so that
    COCO_val2014_000000000042.jpg, 000000000042.jpg and scenes_val_000000000042.png serve alike.

    Args:
        questions: {"questions": [{"question_id", "image_id", "question"}], "data_type", "data_subtype", ...}.
        annotations: {"annotations": [{"question_id", "image_id", "answer_type", "answers": [{"answer", ...}]}], ...}.
        images: folder of the pictures: val2014 of COCO 2014 for the val splits.
        name: of the task.
        split: what is scored.

    Raises:
        UserError: a file is missing, damaged or of another layout; an annotation of a question that is not among the questions,
            or of another picture; two files for one picture; see :func:`gather`.
    """
    path, content = read_json(questions, wanted=_QUESTIONS)
    asked = _by_id(path, records(path, content, "questions", wanted=_QUESTIONS))
    answers_path, answers_content = read_json(annotations, wanted=_ANNOTATIONS)
    answered = _by_id(answers_path, records(answers_path, answers_content, "annotations", wanted=_ANNOTATIONS))
    for question_id, annotation in answered.items():
        where = f"{answers_path}: annotation of question {question_id}"
        if question_id not in asked:
            raise UserError(f"{where}: {path.name} has no such question; both files must be of one split")
        if annotation.get("image_id") != asked[question_id].get("image_id"):
            pair = f"{annotation.get('image_id')!r:.40}, in {path.name} {asked[question_id].get('image_id')!r:.40}"
            raise UserError(f"{where}: image_id is {pair}; both files must be of one split")
    info = content.get("info")
    synthetic = isinstance(info, dict) and info.get("synthetic") is True
    file_name = _file_name(content, suffix="png" if synthetic else "jpg")
    wanted = f"the folder of files such as {file_name(42)}, e.g. val2014 of COCO 2014"
    shelf = PictureFolder(images, file_name=file_name, key=trailing_number, wanted=wanted)
    found = _read(path, asked, answers_path, answered)
    return gather(found, shelf, source=path, name=name, split=split, synthetic=synthetic)


def _by_id(path: Path, entries: list[Json]) -> dict[int, Json]:
    found: dict[int, Json] = {}
    for number, entry in enumerate(entries):
        question_id = whole_of(entry, "question_id", f"{path}: entry {number}")
        if question_id in found:
            raise UserError(f"{path}: question {question_id} is there twice; each needs an id of its own")
        found[question_id] = entry
    return found


def _file_name(content: Json, *, suffix: str) -> Callable[[ImageName], str]:
    """COCO_val2014_000000000042.jpg: what the layout has the file of a picture be called."""
    kind, part = content.get("data_type", "mscoco"), content.get("data_subtype", "val2014")
    return lambda image: f"{'COCO' if kind == 'mscoco' else kind}_{part}_{image:0>12}.{suffix}"


def _read(path: Path, asked: dict[int, Json], answers_path: Path, answered: dict[int, Json]) -> Iterator[Asked]:
    for question_id, question in asked.items():
        where = f"{path}: question {question_id}"
        image, text = whole_of(question, "image_id", where), text_of(question, "question", where)
        answers: tuple[str, ...] = ()
        kind = ""
        if (annotation := answered.get(question_id)) is not None:
            where = f"{answers_path}: annotation of question {question_id}"
            kind = text_of(annotation, "kind" if "kind" in annotation else "answer_type", where)
            answers = _answers(annotation, where)
        yield Asked(str(question_id), image, text, answers, kind)


def _answers(annotation: Json, where: str) -> tuple[str, ...]:
    given = annotation.get("answers")
    if not isinstance(given, list) or not all(isinstance(a, dict) and isinstance(a.get("answer"), str) for a in given):
        raise UserError(f'{where}: answers is {given!r:.60}; it must be a list of {{"answer": text, ...}}')
    return tuple(answer["answer"] for answer in given)
