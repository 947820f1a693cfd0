"""LLaVA's instruction data (Liu et al. 2023; e.g. llava_v1_5_mix665k.json), read entry by entry: the file is 1 GB.

An entry, in a JSON list or as a line of JSONL:

    {"id": "000000033471", "image": "coco/train2017/000000033471.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat are the colors of the bus?"}, {"from": "gpt", "value": "White and red."}, ...]}

Without "image" it is text alone. Other fields are not looked at; an entry without "id" is called by its number.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from evals.data.files import existing_file
from evals.data.loading import MAX_FAULT_SHARE, MIN_COUNTED
from evals.multimodal.data.pictures import PictureTree
from evals.multimodal.data.question_set import NO_PICTURE, Json, id_of, text_of
from evals.multimodal.data.taught import PackedConversations, TaughtSet
from evals.multimodal.examples import Conversation
from pretrain.data.storage import one_line
from pretrain.data.terminal import progress_bar
from pretrain.types import UserError

#: What `repaired` counts: conversations that are left out, ...
SEVERAL_PICTURES, MISPLACED, NOTHING_LEFT = "several pictures", "<image> away from its place", "without any turn"
#: ... turns that are, ...
NO_QUESTION, NO_ANSWER, EMPTY_TURN = "answer in front of the first question", "last question unanswered", "empty turn"
#: ... and ids that get a number behind them.
DOUBLED_ID = "id there before"
_WANTED = 'LLaVA\'s instructions: a JSON list, or lines, of {"id", "image", "conversations": [{"from", "value"}, ...]}'
_PLACE = "<image>"
_PLACE_AND_SPACE = re.compile(rf"\s*{_PLACE}\s*")
_ROLES = ("human", "gpt")
#: Characters that are read at once, and most that an entry may have.
_PIECE, _MAX_ENTRY = 1 << 20, 1 << 26


def read_llava(file: Path, images: Path, *, name: str) -> TaughtSet:
    """Conversations of LLaVA's layout; each turn sees those before it.

    "<image>" is taken out of the first question with the white space next to it; the picture stands in front, also where there is
    no "<image>". Texts lose the white space at their ends.

    Left out and counted: conversations with several pictures, with "<image>" in a later turn, in an answer or without a picture,
    or whose picture is missing; answers in front of the first question, as LLaVA's own code does; a last question without
    answer; empty turns. The first question may be empty where there is a picture. An id that was there before gets "#2", "#3"
    and so on, as several are in the official file.

    Args:
        file: a list of entries as JSON, or one a line.
        images: folder that `image` is relative to.
        name: as its config gives it.

    Raises:
        UserError: with the entry or the line: what is not of this layout, turns that do not alternate; more than 5% of the
            pictures are missing (of 20 at least); no conversation with a picture is left.
    """
    path = existing_file(Path(file).expanduser(), wanted=_WANTED)
    reader = _Reader(PictureTree(images, wanted=f"the folder that `image` in {path.name} is relative to"))
    packed = PackedConversations(reader.read(path), name=name)
    reader.check_missing(name)
    if not reader.numbers:
        left_out = ", ".join(f"{kind}: {count:,}" for kind, count in reader.counts.items()) or "nothing was left out"
        raise UserError(
            f"{name}: {path} has no conversation about a picture, {len(packed):,} of text alone ({left_out}); wanted: {_WANTED}"
        )
    pictures = reader.shelf.pictures(list(reader.numbers), name=name, split="train", synthetic=False)
    return TaughtSet(packed, pictures, name=name, independent=False, repaired=reader.counts)


class _Reader:
    """Makes conversations of entries.

    Attributes:
        counts: what was left out or mended.
        numbers: key -> number of each picture, in the order in which they come.
    """

    def __init__(self, shelf: PictureTree) -> None:
        self.shelf = shelf
        self.counts: Counter[str] = Counter()
        self.numbers: dict[str, int] = {}
        self._missing: dict[str, None] = {}
        self._ids: set[str] = set()
        self._copies: Counter[str] = Counter()

    def read(self, path: Path) -> Iterator[Conversation]:
        for number, (where, entry) in enumerate(_entries(path)):
            if not isinstance(entry, dict):
                raise UserError(f"{where} holds a {type(entry).__name__}, not an object; wanted: {_WANTED}")
            conversation = self._conversation(entry, number, where)
            if conversation is not None:
                yield conversation

    def _conversation(self, entry: Json, number: int, where: str) -> Conversation | None:
        conversation_id = str(number) if entry.get("id") is None else id_of(entry, "id", where)
        images = _images(entry, where)
        turns = _alternating(_turns(entry, where), self.counts, where)
        if fault := _placement_fault([text for turn in turns for text in turn], num_pictures=len(images)):
            self.counts[fault] += 1
            return None
        turns = self._without_empty(turns, with_picture=bool(images))
        if not turns:
            self.counts[NOTHING_LEFT] += 1
            return None
        picture = None
        if images:
            if (key := self.shelf.find(images[0])) is None:
                self.counts[NO_PICTURE] += 1
                self._missing[images[0]] = None
                return None
            picture = self.numbers.setdefault(key, len(self.numbers))
        return Conversation(self._own_id(conversation_id), picture, tuple(turns))

    def _without_empty(self, turns: list[tuple[str, str]], *, with_picture: bool) -> list[tuple[str, str]]:
        kept = []
        for number, (question, answer) in enumerate(turns):
            if number == 0:  # it stands nowhere else
                question = _PLACE_AND_SPACE.sub(" ", question).strip()
            if answer and (question or (with_picture and number == 0)):
                kept.append((question, answer))
            else:
                self.counts[EMPTY_TURN] += 1
        return kept

    def _own_id(self, conversation_id: str) -> str:
        own = conversation_id
        while own in self._ids:
            self._copies[conversation_id] += 1
            own = f"{conversation_id}#{self._copies[conversation_id] + 1}"
        self._ids.add(own)
        if own != conversation_id:
            self.counts[DOUBLED_ID] += 1
        return own

    def check_missing(self, name: str) -> None:
        """Raise UserError where too many pictures are missing, or all."""
        total = len(self._missing) + len(self.numbers)
        too_many = not self.numbers or len(self._missing) > MAX_FAULT_SHARE * max(MIN_COUNTED, total)
        if self._missing and too_many:
            raise UserError(
                f"{name}: {len(self._missing):,} of {total:,} pictures are not in {str(self.shelf.place)!r}; the first is "
                f"{next(iter(self._missing))}; wanted: {self.shelf.wanted}"
            )


def _images(entry: Json, where: str) -> list[str]:
    """Paths of an entry's pictures; lists are of data sets with several."""
    value = entry.get("image")
    values = [] if value is None else value if isinstance(value, list) else [value]
    images = [text_of({"image": one}, "image", where) for one in values]
    for image in images:
        path = PurePosixPath(image)
        if path.is_absolute() or ".." in path.parts or "\0" in image:
            raise UserError(f"{where}: image is {image!r:.60}; it must be a path below the folder of pictures")
    return images


def _turns(entry: Json, where: str) -> list[tuple[str, str]]:
    """(who, text) of each turn."""
    given = entry.get("conversations")
    if not isinstance(given, list) or not all(isinstance(turn, dict) for turn in given):
        raise UserError(f'{where}: conversations is {given!r:.60}; it must be a list of {{"from", "value"}}')
    turns = []
    for number, turn in enumerate(given, start=1):
        who, text = turn.get("from"), turn.get("value")
        if who not in _ROLES:
            raise UserError(f"{where}: turn {number} is from {who!r:.40}; it must be from {' or '.join(_ROLES)}")
        if not isinstance(text, str):
            raise UserError(f"{where}: value of turn {number} is {text!r:.60}; it must be a text")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError(f"{where}: value of turn {number} holds half a character (a lone surrogate); mend the file")
        turns.append((who, text.strip()))
    return turns


def _alternating(turns: list[tuple[str, str]], counts: Counter[str], where: str) -> list[tuple[str, str]]:
    """(question, answer) of each pair."""
    if turns and turns[0][0] == "gpt":
        counts[NO_QUESTION] += 1
        turns = turns[1:]
    for number, (who, _) in enumerate(turns):
        if who != _ROLES[number % 2]:
            raise UserError(
                f"{where}: two turns from {who} follow each other; turns must alternate, from human and from gpt"
            )
    if len(turns) % 2:
        counts[NO_ANSWER] += 1
        turns = turns[:-1]
    texts = [text for _, text in turns]
    return list(zip(texts[::2], texts[1::2]))


def _placement_fault(texts: list[str], *, num_pictures: int) -> str:
    """Why a picture cannot stand in front of the first of these texts and nowhere else; "" where it can."""
    num_places = [text.count(_PLACE) for text in texts]
    if num_pictures > 1 or (num_pictures and sum(num_places) > 1):
        return SEVERAL_PICTURES
    if sum(num_places) and not (num_pictures and num_places[0]):
        return MISPLACED
    return ""


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each entry stands, and what it is; with a bar over the file, in MiB."""
    try:
        with path.open(encoding="utf-8-sig") as file, progress_bar() as bar:
            task = bar.add_task(f"read {path.name}", total=path.stat().st_size >> 20)
            beginning = file.read(_PIECE)
            is_list = beginning.lstrip().startswith("[")
            found = _of_list(file, beginning, path) if is_list else _of_lines(file, beginning, path)
            for number, place_and_entry in enumerate(found):
                if number % 1000 == 0:
                    bar.update(task, completed=file.buffer.tell() >> 20)
                yield place_and_entry
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({one_line(error)}); wanted: {_WANTED}") from error


def _of_list(file: TextIO, text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Elements of a JSON list; `text` is what has been read of it. Only a piece of the file is held."""
    decoder = json.JSONDecoder()
    at = text.index("[") + 1
    number = 0
    while True:
        text, at = _skip_space(file, text, at)
        if text[at : at + 1] == "]" and not number:
            break
        where = f"{path}: entry {number}"
        while True:
            try:
                entry, at = decoder.raw_decode(text, at)
                break
            except (json.JSONDecodeError, RecursionError) as error:
                piece = file.read(_PIECE)  # the entry may go on there
                if not piece or len(text) - at > _MAX_ENTRY:
                    told = error.msg if isinstance(error, json.JSONDecodeError) else one_line(error)
                    raise UserError(f"{where} is no JSON ({told}); wanted: {_WANTED}") from error
                text, at = text[at:] + piece, 0
        yield where, entry
        number += 1
        text, at = _skip_space(file, text, at)
        if (mark := text[at : at + 1]) == "]":
            break
        if mark != ",":
            raise UserError(f"{path}: behind entry {number - 1} stands {mark!r}; it must be ',' or ']'")
        at += 1
    text, at = _skip_space(file, text, at + 1)
    if at < len(text):
        raise UserError(f"{path}: behind the list stands {text[at : at + 20]!r}; it must be the end of the file")


def _skip_space(file: TextIO, text: str, at: int) -> tuple[str, int]:
    """What is read, and where in it the next character stands that is no white space; at the end of the file, its length."""
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at < len(text):
            return text, at
        text, at = file.read(_PIECE), 0
        if not text:
            return text, at


def _of_lines(file: TextIO, beginning: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Each line's object; empty lines are nothing."""
    *whole, rest = beginning.split("\n")

    def lines() -> Iterator[str]:
        yield from whole
        yield rest + file.readline()
        yield from file

    for number, line in enumerate(lines(), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is no JSON ({one_line(error)}); wanted: {_WANTED}") from error
        yield where, entry
