"""GQA's questions as its authors give them out (visualreasoning.net), e.g. testdev_balanced_questions.json."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from evals.multimodal.data.pictures import PictureFolder
from evals.multimodal.data.question_set import Asked, Json, QuestionSet, gather, id_of, read_json, text_of
from pretrain.types import UserError

_WANTED = (
    'GQA\'s questions, e.g. testdev_balanced_questions.json: {question id: {"question", "imageId", "answer", ...}}'
)
#: What `repaired` counts: GQA's own evaluation takes no account of these.
NOT_BALANCED = "not balanced"


def read_gqa(questions: Path, images: Path, *, name: str, split: str) -> QuestionSet:
    """A split of GQA: one answer a question, the kind is the structural type (query, verify, choose, compare, logical).

    Of a file of all questions, those that are not of the balanced set are left out and counted, since the accuracy that is
    published is over the balanced ones.

    Args:
        questions: {question id: {"question", "imageId", "answer", "types": {"structural", ...}, "isBalanced", ...}}.
        images: folder of IMAGEID.jpg.
        name: of the task.
        split: what is scored.

    Raises:
        UserError: the file is missing, damaged or of another layout; see :func:`gather`.
    """
    path, content = read_json(questions, wanted=_WANTED)
    repaired: Counter[str] = Counter()
    asked = list(_read(path, content, repaired))
    wanted = "the folder of GQA's pictures, IMAGEID.jpg (2375429.jpg, n161313.jpg)"
    shelf = PictureFolder(images, file_name=lambda image: f"{image}.jpg", wanted=wanted)
    return gather(asked, shelf, source=path, name=name, split=split, repaired=repaired)


def _read(path: Path, content: Json, repaired: Counter[str]) -> Iterator[Asked]:
    for question_id, entry in content.items():
        where = f"{path}: question {question_id}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is {entry!r:.60}, not an object; wanted: {_WANTED}")
        if entry.get("isBalanced", True) is not True:
            repaired[NOT_BALANCED] += 1
            continue
        image, question = id_of(entry, "imageId", where), text_of(entry, "question", where)
        if "answer" not in entry:  # test and challenge
            yield Asked(question_id, image, question, ())
            continue
        types = entry.get("types")
        if not isinstance(types, dict):
            raise UserError(f"{where}: types is {types!r:.60}; it must be an object with 'structural'")
        kind = text_of(types, "structural", f"{where}: types")
        if not isinstance(entry["answer"], str):
            raise UserError(f"{where}: answer is {entry['answer']!r:.60}; it must be a text")
        yield Asked(question_id, image, question, (entry["answer"],), kind)
