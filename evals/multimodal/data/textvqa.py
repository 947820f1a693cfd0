"""TextVQA's questions (textvqa.org/dataset), e.g. TextVQA_0.5.1_val.json."""

from collections.abc import Iterator
from pathlib import Path

from evals.multimodal.data.pictures import PictureFolder
from evals.multimodal.data.question_set import (
    Asked,
    Json,
    QuestionSet,
    gather,
    id_of,
    read_json,
    records,
    text_of,
    texts_of,
)

_WANTED = 'TextVQA\'s questions, e.g. TextVQA_0.5.1_val.json: {"data": [{"question_id", "image_id", "question", ...}]}'


def read_textvqa(file: Path, images: Path, *, name: str, split: str) -> QuestionSet:
    """A split of TextVQA, with ten answers a question; it has no kinds. Nothing is taken of the OCR that comes with it.

    Args:
        file: {"data": [{"question_id", "image_id", "question", "answers": [ten texts], ...}], ...}.
        images: folder of IMAGE_ID.jpg: train_images, which has val's pictures too.
        name: of the task.
        split: what is scored.

    Raises:
        UserError: the file is missing, damaged or of another layout; see :func:`gather`.
    """
    path, content = read_json(file, wanted=_WANTED)
    entries = records(path, content, "data", wanted=_WANTED)
    wanted = "the folder of TextVQA's pictures, IMAGE_ID.jpg: train_images, which has those of val too"
    shelf = PictureFolder(images, file_name=lambda image: f"{image}.jpg", wanted=wanted)
    return gather(_read(path, entries), shelf, source=path, name=name, split=split)


def _read(path: Path, entries: list[Json]) -> Iterator[Asked]:
    for number, entry in enumerate(entries):
        question_id = id_of(entry, "question_id", f"{path}: data[{number}]")
        where = f"{path}: question {question_id}"
        image, question = id_of(entry, "image_id", where), text_of(entry, "question", where)
        yield Asked(question_id, image, question, texts_of(entry, "answers", where))
