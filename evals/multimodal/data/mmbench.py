"""MMBench's tables (opencompass.org), e.g. MMBench_DEV_EN.tsv: questions with choices, and their pictures as base64."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from evals.data.files import did_you_mean, existing_file
from evals.multimodal.data.pictures import PictureTable
from evals.multimodal.data.question_set import Asked, QuestionSet, gather, text_of, with_hint
from evals.multimodal.examples import LETTERS
from evals.multimodal.metrics.choices import on_lines, rotations
from pretrain.data.storage import one_line
from pretrain.types import UserError

_WANTED = (
    "MMBench's table, e.g. MMBench_DEV_EN.tsv: index, question, hint, A, B, C, D, answer, category, image (base64)"
)
_COLUMNS = ("index", "question", "A", "B", "category", "image")
#: Rows with this index and above are rotations of row `index % _ROTATION`, its choices shifted.
_ROTATION = 1_000_000
#: What `repaired` counts: they are made here, the same for every file.
OWN_ROTATIONS = "the file's own rotations"
#: Bytes of a cell: pictures are far beyond csv's own limit of 131,072.
_MAX_CELL = 1 << 30

Row = dict[str, str]


def read_mmbench(file: Path, *, name: str, split: str, circular: bool = True) -> QuestionSet:
    """A split of MMBench whose answers are public (dev). The kind is `category`.

    Some releases hold each question several times, its choices shifted, at index + 1,000,000, + 2,000,000 and so on. These rows
    are left out and counted, with `circular` and without: rotations are made here, so that every release gives the same examples.
    A hint stands on lines of its own in front of the question, the choices behind it. A cell of `image` that is a number names
    the row whose picture it shares.

    Args:
        file: tab separated, with csv's quoting.
        name: of the task.
        split: what is scored.
        circular: each question becomes as many examples as it has choices, for MMBench's circular evaluation; one otherwise.

    Raises:
        UserError: the file is missing, damaged or of another layout, or has no answers; an answer that names no choice; a
            rotation without its question; a picture of a row that is not there; see :func:`gather`.
    """
    path = existing_file(Path(file).expanduser(), wanted=_WANTED)
    rows = _rows(path)
    repaired: Counter[str] = Counter()
    asked, bare = [], {}
    for index, row in rows.items():
        where = f"{path}: row {index}"
        if index >= _ROTATION:
            if index % _ROTATION not in rows:
                raise UserError(f"{where}: it is a rotation of row {index % _ROTATION}, which the file lacks")
            repaired[OWN_ROTATIONS] += 1
            continue
        bare[str(index)] = with_hint(row.get("hint", ""), text_of(row, "question", where))
        asked.append(_asked(index, row, bare[str(index)], _source(path, index, rows)))
    shelf = PictureTable(path, {str(index): row["image"].strip() for index, row in rows.items()}, wanted=_WANTED)
    plain = gather(asked, shelf, source=path, name=name, split=split, repaired=repaired)
    if not circular:
        return plain
    examples = [part for example in plain.examples for part in rotations(example, question=bare[example.example_id])]
    return QuestionSet(examples, plain.pictures, name=name, split=split, repaired=plain.repaired)


@contextmanager
def _long_cells() -> Iterator[None]:
    """The csv module's limit holds for the whole process, so it is put back."""
    before = csv.field_size_limit(_MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _rows(path: Path) -> dict[int, Row]:
    """Rows by index, in the order of the file."""
    found: dict[int, Row] = {}
    try:
        with _long_cells(), path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, delimiter="\t", strict=True)
            _check_columns(path, list(reader.fieldnames or []))
            for row in reader:
                where = f"{path}: line {reader.line_num}"
                if None in row or None in row.values():
                    raise UserError(f"{where}: the row has not the {len(reader.fieldnames)} cells of the first line")
                if not row["index"].strip().isdecimal():
                    raise UserError(f"{where}: index is {row['index']!r:.60}; it must be a whole number")
                index = int(row["index"])
                if index in found:
                    raise UserError(f"{where}: index {index} is there twice; each row needs one of its own")
                found[index] = row
    except (OSError, ValueError, csv.Error) as error:  # ValueError: bytes that are no UTF-8
        raise UserError(f"{path} cannot be read as a table ({one_line(error)}); wanted: {_WANTED}") from error
    return found


def _check_columns(path: Path, columns: list[str]) -> None:
    for wanted in _COLUMNS:
        if wanted not in columns:
            near = did_you_mean(wanted, columns)
            raise UserError(f"{path}: there is no column {wanted!r}{near}; wanted: {_WANTED}")
    if "answer" not in columns:
        raise UserError(
            f"{path}: there is no column 'answer': MMBench's own server scores that split; give one with answers, dev"
        )


def _source(path: Path, index: int, rows: Mapping[int, Row]) -> str:
    """Index of the row that holds a row's picture."""
    cell = rows[index]["image"].strip()
    if not cell.isdecimal():  # base64 of a picture never is: its first bytes are letters
        return str(index)
    held = rows[int(cell)]["image"].strip() if int(cell) in rows else "0"
    if held.isdecimal():
        raise UserError(
            f"{path}: row {index}: image names row {cell}, which holds no picture; it must be one that does"
        )
    return str(int(cell))


def _asked(index: int, row: Row, question: str, image: str) -> Asked:
    cells = [row[letter].strip() for letter in LETTERS if letter in row]
    choices = tuple(cell for cell in cells if cell)
    where = f"question {index}"
    if len(choices) < 2 or tuple(cells[: len(choices)]) != choices:
        filled = ", ".join(letter for letter, cell in zip(LETTERS, cells) if cell) or "none"
        raise UserError(f"{where}: choices {filled} are filled; it must be A, B and further ones without a gap")
    answer = row["answer"].strip().upper()
    if answer and answer not in list(LETTERS[: len(choices)]):
        raise UserError(
            f"{where}: answer {row['answer']!r:.40} names none of its {len(choices)} choices; it must be a letter"
        )
    answers = (answer,) if answer else ()
    return Asked(str(index), image, on_lines(question, choices), answers, row["category"].strip(), choices)
