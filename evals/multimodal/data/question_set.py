"""One split of a question answering task, and what the readers of its official files share.

Shape letters: N examples, P pictures, C clusters (pictures, and examples on them, that stay together).
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evals.data.files import existing_file
from evals.data.labelled import LabelledSet, Subset
from evals.data.loading import MAX_FAULT_SHARE, MIN_COUNTED
from evals.multimodal.data.pictures import ImageName, Shelf
from evals.multimodal.examples import Example, ExampleSet
from pretrain.data.storage import digest, one_line
from pretrain.rng import draw_rng
from pretrain.types import UserError

Json = dict[str, Any]
#: What `repaired` counts of every task.
NO_ANSWERS, NO_PICTURE = "without answers", "picture missing"


class QuestionSet(ExampleSet):
    """Examples and their pictures.

    Args:
        examples: in the order of the file.
        pictures: by number.
        name: of the task, as its config gives it.
        split: what is scored.
        repaired: kind of fault -> how many examples were left out for it.
        synthetic: whether its pictures are generated.

    Raises:
        UserError: there is no example, or two have one id.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        pictures: LabelledSet,
        *,
        name: str,
        split: str,
        repaired: Mapping[str, int] | None = None,
        synthetic: bool = False,
    ) -> None:
        self.examples, self.pictures, self.name, self.split = tuple(examples), pictures, name, split
        self.repaired = {kind: count for kind, count in (repaired or {}).items() if count}
        self.synthetic = synthetic
        if not self.examples:
            raise UserError(f"{name} {split}: there is no question; give a set of one or more")
        counts = Counter(example.example_id for example in self.examples)
        if len(counts) < len(self.examples):
            twice, count = counts.most_common(1)[0]
            raise UserError(f"{name} {split}: question id {twice!r} is there {count} times; each needs one of its own")
        assert all(0 <= example.picture < len(pictures) for example in self.examples)

    def identity(self) -> str:
        """What decides examples, pictures and their order; the same on any machine."""
        # the tuple of a frozen dataclass's fields, without the deep copies of asdict
        lines = (json.dumps(list(vars(example).values())) for example in self.examples)
        return f"{self.pictures.pictures_identity()} examples={digest(chr(10).join(lines).encode())}"

    def describe_repairs(self) -> str:
        """One line; "" where nothing was left out."""
        counts = ", ".join(f"{kind}: {count:,}" for kind, count in self.repaired.items())
        return f"{self.name} {self.split}: questions left out: {counts}" if counts else ""

    def subset(self, num: int, seed: int) -> Self:
        """A random part for a quick look, in the order of the file.

        Whole groups and whole pictures are taken, in an order that the seed draws, until there are `num` examples or a few more.
        What was left out of the whole file is still counted.

        Args:
            num: examples, 1 or more; all of them are this set itself.
            seed: of the choice.

        Raises:
            UserError: num below 1.
        """
        if num < 1:
            raise UserError(f"{self.name} {self.split}: a part of {num} examples cannot be taken; take 1 or more")
        if num >= len(self):
            return self
        picture_N = np.array([example.picture for example in self.examples])
        cluster_P = _clusters(self.examples, num_pictures=len(self.pictures))
        count_C = np.bincount(cluster_P[picture_N], minlength=cluster_P.max() + 1)
        order_C = draw_rng(seed, "question-subset", 0).permutation(len(count_C))
        taken = np.searchsorted(np.cumsum(count_C[order_C]), num) + 1
        keep_C = np.isin(np.arange(len(count_C)), order_C[:taken])
        kept_P = np.intersect1d(np.flatnonzero(keep_C[cluster_P]), picture_N)
        number = {picture: place for place, picture in enumerate(kept_P.tolist())}
        examples = [Example(**(vars(e) | {"picture": number[e.picture]})) for e in self.examples if e.picture in number]
        options = {"name": self.name, "split": self.split, "repaired": self.repaired, "synthetic": self.synthetic}
        return type(self)(examples, Subset(self.pictures, kept_P), **options)


def _clusters(examples: Sequence[Example], *, num_pictures: int) -> np.ndarray:
    """int [P]: pictures with one number have to stay together, since a group lies on them."""
    groups: dict[str, int] = {}
    edges = [
        (example.picture, num_pictures + groups.setdefault(example.group, len(groups)))
        for example in examples
        if example.group
    ]
    size = num_pictures + len(groups)
    ends = np.array(edges, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(size, size))
    return connected_components(graph, directed=False)[1][:num_pictures]


class Asked(NamedTuple):
    """A question as its file has it, before its picture is looked for; see :class:`Example`."""

    example_id: str
    image: ImageName
    question: str
    answers: tuple[str, ...]
    kind: str = ""
    choices: tuple[str, ...] = ()
    group: str = ""


def gather(
    asked: Iterable[Asked],
    shelf: Shelf,
    *,
    source: Path,
    name: str,
    split: str,
    repaired: Mapping[str, int] | None = None,
    synthetic: bool = False,
) -> QuestionSet:
    """The questions that have answers and a picture. Pictures are numbered in the order in which they are asked about.

    Args:
        asked: in the order of the file.
        shelf: of the pictures.
        source: the file, for errors.
        name: of the task.
        split: what is scored.
        repaired: what the reader left out itself.
        synthetic: whether its pictures are generated.

    Raises:
        UserError: more than 5% of the pictures are missing (of 20 at least, so that a handful of pictures may lack one); no
            question is left; two have one id.
    """
    counts = Counter(repaired or {})
    examples: list[Example] = []
    numbers: dict[str, int] = {}
    missing: dict[ImageName, None] = {}
    for entry in asked:
        if not any(answer.strip() for answer in entry.answers):
            counts[NO_ANSWERS] += 1
        elif (key := shelf.find(entry.image)) is None:
            counts[NO_PICTURE] += 1
            missing[entry.image] = None
        else:
            picture = numbers.setdefault(key, len(numbers))
            examples.append(Example(entry.example_id, picture, *entry[2:]))
    total = len(missing) + len(numbers)
    if missing and (not examples or len(missing) > MAX_FAULT_SHARE * max(MIN_COUNTED, total)):
        raise UserError(
            f"{name} {split}: {len(missing):,} of {total:,} pictures are not in {str(shelf.place)!r}; the first is "
            f"{shelf.expected(next(iter(missing)))}; wanted: {shelf.wanted}"
        )
    if not examples:
        left_out = ", ".join(f"{kind}: {count:,}" for kind, count in counts.items() if count) or "it holds none"
        raise UserError(
            f"{name} {split}: {source} has no question that can be scored ({left_out}); give a split whose answers are "
            "public: those of test splits are kept by the official servers"
        )
    pictures = shelf.pictures(list(numbers), name=name, split=split, synthetic=synthetic)
    return QuestionSet(examples, pictures, name=name, split=split, repaired=counts, synthetic=synthetic)


def with_hint(hint: str, question: str) -> str:
    """What is to be known first, on lines of its own in front of the question."""
    return f"{hint.strip()}\n{question}" if hint.strip() else question


def read_json(file: str | Path, *, wanted: str) -> tuple[Path, Json]:
    """The file's path and its content, an object. Raises UserError; `wanted` says what the file should be."""
    path = existing_file(Path(file).expanduser(), wanted=wanted)
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({one_line(error)}); wanted: {wanted}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object; wanted: {wanted}")
    return path, content


def records(path: Path, content: Json, key: str, *, wanted: str) -> list[Json]:
    """The list of objects under a top-level key. Raises UserError."""
    if key not in content:
        raise UserError(f"{path} has no {key!r}, only {', '.join(map(repr, list(content)[:8]))}; wanted: {wanted}")
    found = content[key]
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise UserError(f"{path}: {key!r} is no list of objects; wanted: {wanted}")
    return found


def text_of(entry: Mapping[str, Any], key: str, where: str) -> str:
    """A text that is not empty, without white space at its ends. Raises UserError."""
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {key} is {value!r:.60}; it must be a text")
    return value.strip()


def whole_of(entry: Mapping[str, Any], key: str, where: str) -> int:
    """A whole number. Raises UserError."""
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{where}: {key} is {value!r:.60}; it must be a whole number")
    return value


def id_of(entry: Mapping[str, Any], key: str, where: str) -> str:
    """A whole number or a text, as text. Raises UserError."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise UserError(f"{where}: {key} is {value!r:.60}; it must be a whole number or a text")
    return str(value)


def texts_of(entry: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """A list of texts, which may be empty or not there. Raises UserError."""
    value = entry.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{where}: {key} is {value!r:.60}; it must be a list of texts")
    return tuple(value)
