"""Lettered choices: accuracy (ScienceQA, SEED), and MMBench's circular evaluation (Liu et al. 2023, "CircularEval").

A text names its choice by the letter, or by the choice's own words. What cannot be read is wrong and counted, not guessed and not
handed to another model, as MMBench's own evaluation does with what its rules do not read.

Shape letters: N examples, U units (groups).
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from evals.multimodal.examples import LETTERS, Example, Scores
from evals.multimodal.metrics.answer_text import check_answers, mean_scores
from pretrain.types import UserError

#: The whole text is a letter: B, b., (B), "B:".
_ALONE = re.compile(r"[\s(\[\"'*]*([a-z])[\s)\].,:;\"'*]*", re.IGNORECASE)
#: It begins with one: B. red, (b) red, B: red.
_LEADING = re.compile(r"[(\[\"'*]*([a-z])[)\].,:*]+\s*(?=\S)", re.IGNORECASE)
_MARKED = re.compile(r"(?<![\w'])([a-z])(?=[)\].,:*]|$)", re.IGNORECASE)
#: It says so. A small letter before another word is no letter ("the answer is a red ring").
_SAID = re.compile(
    r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*(?:option\s+|choice\s+)?[(\[\"'*]*"
    r"([a-z](?=[)\].,:;\"'*]|\s*$)|(?-i:[A-Z])(?=\s))",
    re.IGNORECASE,
)


def read_letter(text: str, choices: Sequence[str]) -> str | None:
    """The capital letter of the choice that a text names; None where it names none or several.

    Read in this order: a choice's letter alone; exactly a choice's words; a letter and its choice's words ("B. red"); "the answer
    is B"; a letter at the beginning ("B: because ..."), if no other stands in the text; one choice's words, as whole words.
    Capitals do not matter.
    """
    valid, plain = LETTERS[: len(choices)], _plain(text)
    words = [_plain(choice) for choice in choices]
    alone, leading = _ALONE.fullmatch(text), _LEADING.match(text)
    said = {found.upper() for found in _SAID.findall(text)}
    if alone and alone[1].upper() in valid:
        found = {alone[1].upper()}
    elif plain in words:
        found = {letter for letter, choice in zip(valid, words) if choice == plain}
    elif leading and (leading[1].upper(), _plain(text[leading.end() :])) in set(zip(valid, words)):
        found = {leading[1].upper()}
    elif said:
        found = said
    elif leading:
        found = {letter.upper() for letter in _MARKED.findall(text)}
    else:
        found = {
            letter
            for letter, choice in zip(valid, words)
            if choice and re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", plain)
        }
    letter = found.pop() if len(found) == 1 else ""
    return letter if letter and letter in valid else None


def choice_scores(examples: Sequence[Example], texts: Sequence[str]) -> Scores:
    """Share of texts that name the right choice.

    Details: "no_letter", how many texts name none or several.

    Raises:
        UserError: for an example without choices, or an answer that is none of their letters.
    """
    right_N, no_letter = _right(examples, texts, metric="choice")
    return mean_scores("accuracy", right_N, {"no_letter": no_letter})


def circular_scores(examples: Sequence[Example], texts: Sequence[str]) -> Scores:
    """MMBench's circular accuracy: a question counts where it is answered rightly in each rotation of its choices.

    Values: "circular", and "vanilla", the accuracy over the first example of each group.

    Details: "no_letter", how many texts name no choice or several.

    Raises:
        UserError: as `choice_scores`, and for an example without group or a group that is not one question's rotations.
    """
    right_N, no_letter = _right(examples, texts, metric="circular")
    members: dict[str, list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        if not example.group:
            raise UserError(f"example {example.example_id!r} has no group; metric 'circular' needs the rotations' own")
        members[example.group].append(number)
    for group, numbers in members.items():
        _check_group(group, [examples[number] for number in numbers])
    unit_U = np.array([numbers[0] for numbers in members.values()], dtype=np.int64)
    score_U = np.array([right_N[numbers].min() for numbers in members.values()])
    values = {"circular": 100 * float(score_U.mean()), "vanilla": 100 * float(right_N[unit_U].mean())}
    return Scores(values, right_N, unit_U, score_U, {"no_letter": no_letter})


def on_lines(question: str, choices: Sequence[str]) -> str:
    """The question and its choices on lines of their own, as LLaVA writes them: A. red."""
    return "\n".join([question, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices))])


def in_line(question: str, choices: Sequence[str]) -> str:
    """The question and its choices on one line in small letters, as scenes write them: what colour ...? a. red b. blue"""
    return " ".join([question, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS.lower(), choices))])


def rotations(
    example: Example, *, question: str, joined: Callable[[str, Sequence[str]], str] = on_lines
) -> list[Example]:
    """An example once for each of its choices, each time with the next choice first; the first is as it was.

    Args:
        example: with choices; its answers are letters, whose case is kept.
        question: its text without the choices.
        joined: makes the whole question of it and the choices.

    Ids are "ID#0", "ID#1" and so on, the group is the example's own id. UserError for an example without choices, or an answer
    that is none of their letters.
    """
    places = [_place(example, answer, metric="circular") for answer in example.answers]
    rotated = []
    for shift in range(len(_letters(example, metric="circular"))):
        choices = example.choices[shift:] + example.choices[:shift]
        letters = [LETTERS[(place - shift) % len(choices)] for place in places]
        answers = [new.lower() if old.islower() else new for old, new in zip(example.answers, letters)]
        rotated.append(
            replace(
                example,
                example_id=f"{example.example_id}#{shift}",
                question=joined(question, choices),
                answers=tuple(answers),
                choices=choices,
                group=example.example_id,
            )
        )
    return rotated


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".").strip()


def _letters(example: Example, *, metric: str) -> str:
    """The capital letters of an example's choices."""
    num = len(example.choices)
    if not 0 < num <= len(LETTERS):
        raise UserError(
            f"example {example.example_id!r} has {num} choices; metric {metric!r} needs 1 to {len(LETTERS)}"
        )
    return LETTERS[:num]


def _place(example: Example, answer: str, *, metric: str) -> int:
    """Which choice an answer's letter stands for."""
    letters, letter = _letters(example, metric=metric), answer.strip().upper()
    if len(letter) != 1 or letter not in letters:
        raise UserError(
            f"example {example.example_id!r} has answer {answer!r}; with {len(letters)} choices a letter from A to"
            f" {letters[-1]} is needed"
        )
    return LETTERS.index(letter)


def _right(examples: Sequence[Example], texts: Sequence[str], *, metric: str) -> tuple[np.ndarray, int]:
    """0 or 1 for each example, and how many texts cannot be read."""
    check_answers(examples, texts)
    wanted = [{LETTERS[_place(example, answer, metric=metric)] for answer in example.answers} for example in examples]
    letters = [read_letter(text, example.choices) for example, text in zip(examples, texts)]
    return np.array([float(letter in right) for letter, right in zip(letters, wanted)]), letters.count(None)


def _check_group(group: str, members: Sequence[Example]) -> None:
    """UserError unless these are one question with each rotation of its choices, once."""
    first = members[0].choices
    if len(members) != len(first):
        raise UserError(
            f"group {group!r} has {len(members)} examples; its {len(first)} choices have {len(first)} rotations"
        )
    every = sorted(first[shift:] + first[:shift] for shift in range(len(first)))
    right = {member.choices[_place(member, member.answers[0], metric="circular")] for member in members}
    if sorted(member.choices for member in members) != every or len(right) != 1:
        raise UserError(
            f"group {group!r} is not one question: its choices are not each other's rotations, with one right"
        )
