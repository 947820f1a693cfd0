"""The pictures of a comparison: questions with every model's answers, where the first model differs from the others, captions."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from evals.data.labelled import BadSample
from evals.multimodal.draw import EMPTY, NO_BREAK, RIGHT, WRONG, Line, Part, Tile, draw_page
from evals.multimodal.examples import LETTERS, Answer, Example, ExampleSet, Scores
from pretrain.rng import draw_rng
from pretrain.types import UserError

#: A score from here on is shown as right; scores between 0 and 1 are printed beside the mark.
MIN_RIGHT = 0.5
MAX_REFERENCES = 5
#: By model, text and score by example_id.
Given = Mapping[str, Mapping[str, tuple[str, float]]]

#: A choice's letter with what stands in front of its words.
_LETTERED = re.compile(r"\s+([A-Za-z][.:)])\s+")
#: In inches: the widest picture, the column of text.
_ANSWER_SIZES, _CAPTION_SIZES = (1.45, 2.9), (1.6, 3.9)


def differ_path(path: str | Path) -> Path:
    """Where :func:`draw_answers` puts the page of examples on which models differ."""
    path = Path(path)
    return path.with_name(f"{path.stem}_differ{path.suffix}")


def draw_answers(
    path: str | Path,
    dataset: ExampleSet,
    answers: Mapping[str, Sequence[Answer]],
    scores: Mapping[str, Scores],
    *,
    about: str,
    num: int = 12,
    seed: int = 0,
) -> Path:
    """Questions with what is right and what each model says; beside it, at :func:`differ_path`, where the first model is right
    alone or wrong alone. Of a question whose choices are rotated, the first order is shown.

    Which examples the first page shows depends on the set and the seed only, not on any answer. The second page is not there
    with a single model, or where there is nothing to show.

    Args:
        path: the PNG to write.
        dataset: the split.
        answers: by model, the one that is asked about first; one that is missing (an unreadable picture) is shown as such.
        scores: by model, of exactly these answers in their order.
        about: the data set in words, for the page's heading.
        num: most examples of a page.
        seed: of the choice.

    Raises:
        UserError: answers and scores do not belong to each other or to the set, or nothing to draw.
    """
    given = _check(dataset, answers, scores, num=num)
    candidates = _shown(dataset)
    chosen = choose(dataset.examples, candidates, num=num, seed=seed)
    tiles = [_answer_tile(dataset, number, given) for number in chosen]
    picked = f"{len(chosen)} of {len(candidates):,} questions, drawn at random (seed {seed})"
    kinds = {dataset.examples[number].kind for number in candidates}
    evenly = f", evenly over {len(kinds)} kinds" if len(kinds) > 1 else ""
    notes = [about, _totals(scores), picked + evenly, _legend(tiles)]
    page = dict(notes=notes, picture_width=_ANSWER_SIZES[0], column_width=_ANSWER_SIZES[1])
    written = draw_page(path, [Part("", tiles)], title="Questions and answers", **page)
    differ_path(path).unlink(missing_ok=True)  # an earlier comparison's
    _draw_differing(differ_path(path), dataset, given, about=about, num=num, seed=seed)
    return written


def _draw_differing(
    path: Path,
    dataset: ExampleSet,
    given: Given,
    *,
    about: str,
    num: int,
    seed: int,
) -> None:
    alone = differing(dataset, given)
    total = sum(map(len, alone))
    if not total:
        return
    first, *others = given
    num = min(num, total)
    num_right = round(num * len(alone[0]) / total)
    parts = []
    for place, (word, numbers, count) in enumerate(zip(("right", "wrong"), alone, (num_right, num - num_right))):
        order = draw_rng(seed, "evals/differing_answers", place).permutation(len(numbers))
        chosen = sorted(numbers[n] for n in order[:count])
        heading = f"{first} alone is {word}: {count} of {len(numbers):,}"
        parts.append(Part(heading, [_answer_tile(dataset, number, given) for number in chosen]))
    title = f"Where {first} differs from {' and '.join(others)}"
    picked = (
        f"right alone on {len(alone[0]):,} and wrong alone on {len(alone[1]):,} of {len(_shown(dataset)):,} questions; shown in "
        f"proportion, drawn at random (seed {seed})"
    )
    notes = [about, picked, _legend([tile for part in parts for tile in part.tiles])]
    draw_page(path, parts, title=title, notes=notes, picture_width=_ANSWER_SIZES[0], column_width=_ANSWER_SIZES[1])


def differing(dataset: ExampleSet, given: Given) -> tuple[list[int], list[int]]:
    """Numbers of the examples that the first model has right and all others wrong, and the reverse; all must have answered."""
    alone: tuple[list[int], list[int]] = ([], [])
    for number in _shown(dataset) if len(given) > 1 else ():
        example_id = dataset.examples[number].example_id
        if all(example_id in own for own in given.values()):
            first, *others = (own[example_id][1] >= MIN_RIGHT for own in given.values())
            if all(other != first for other in others):
                alone[0 if first else 1].append(number)
    return alone


def draw_captions(
    path: str | Path,
    dataset: ExampleSet,
    answers: Mapping[str, Sequence[Answer]],
    scores: Mapping[str, Scores],
    *,
    about: str,
    num: int = 8,
    seed: int = 0,
) -> Path:
    """Pictures with each model's caption, its own CIDEr-D, and up to five references; arguments as of :func:`draw_answers`."""
    given = _check(dataset, answers, scores, num=num)
    candidates = _shown(dataset)
    chosen = choose(dataset.examples, candidates, num=num, seed=seed)
    notes = [
        about,
        _totals(scores),
        f"{len(chosen)} of {len(candidates):,} pictures, drawn at random (seed {seed}); the number in front is the caption's own "
        "CIDEr-D (its mean over the set times 100 is what tables print)",
    ]
    tiles = [_caption_tile(dataset, number, given) for number in chosen]
    return draw_page(
        path,
        [Part("", tiles)],
        title="Captions and references",
        notes=notes,
        picture_width=_CAPTION_SIZES[0],
        column_width=_CAPTION_SIZES[1],
    )


def choose(examples: Sequence[Example], candidates: Sequence[int], *, num: int, seed: int) -> list[int]:
    """Up to `num` of the candidates, drawn at random with as many of each kind as there are; kind by kind in the set's order.

    Args:
        examples: of the set.
        candidates: numbers of examples.
        num: how many.
        seed: of the draw.
    """
    rng = draw_rng(seed, "evals/shown_examples", 0)
    kinds = list(dict.fromkeys(examples[number].kind for number in candidates))
    waiting: dict[str, list[int]] = {kind: [] for kind in kinds}
    for place in rng.permutation(len(candidates)):
        waiting[examples[candidates[place]].kind].append(candidates[place])
    turns = [waiting[kinds[place]] for place in rng.permutation(len(kinds))]
    chosen: list[int] = []
    while len(chosen) < num and any(turns):
        chosen += [own.pop() for own in turns if own][: num - len(chosen)]
    return sorted(chosen, key=lambda number: (kinds.index(examples[number].kind), number))


def reference_text(example: Example) -> str:
    """What is right in a line: the most frequent of several people's answers with its count, else all that are accepted."""
    counts = Counter(example.answers)
    if len(counts) < len(example.answers):
        text, count = counts.most_common(1)[0]
        return f"{with_choice(text.strip(), example.choices) or EMPTY} ({count} of {len(example.answers)})"
    return " or ".join(with_choice(text.strip(), example.choices) or EMPTY for text in counts)


def with_choice(text: str, choices: Sequence[str]) -> str:
    """A choice's letter with what it stands for; any other text as it is."""
    place = LETTERS.find(text.strip(" .:()").upper() or "?")
    alone = len(text.strip(" .:()")) == 1
    return f"{text}: {choices[place]}" if alone and 0 <= place < len(choices) else text


def _check(
    dataset: ExampleSet, answers: Mapping[str, Sequence[Answer]], scores: Mapping[str, Scores], *, num: int
) -> Given:
    """What each model says and its scores; UserError where something does not belong together."""
    about = f"pictures of {dataset.name}"
    if num < 1 or not answers or not len(dataset):
        raise UserError(f"{about}: num={num}, {len(answers)} models, {len(dataset)} examples: give one of each or more")
    if list(answers) != list(scores):
        raise UserError(
            f"{about}: answers of {', '.join(answers)}, but scores of {', '.join(scores) or 'none'}; give the same models in the "
            "same order"
        )
    known = {example.example_id for example in dataset.examples}
    for label, own in answers.items():
        if len(scores[label].score_N) != len(own):
            raise UserError(
                f"{about}: {len(scores[label].score_N):,} scores for {len(own):,} answers of {label}; give one for each"
            )
        stray = next((answer.example_id for answer in own if answer.example_id not in known), None)
        if stray is not None:
            raise UserError(f"{about}: {label} answers {stray!r}, which is no example of {dataset.split}")
    return {
        label: {answer.example_id: (answer.text, score) for answer, score in zip(own, scores[label].score_N.tolist())}
        for label, own in answers.items()
    }


def _shown(dataset: ExampleSet) -> list[int]:
    """Numbers of examples; of those that are one question with its choices rotated, the first."""
    firsts: dict[tuple[str, int], int] = {}
    for number, example in enumerate(dataset.examples):
        rotated = example.choices and example.group
        firsts.setdefault((example.group, -1) if rotated else ("", number), number)
    return list(firsts.values())


def _answer_tile(dataset: ExampleSet, number: int, given: Given) -> Tile:
    example, orders = dataset.examples[number], []
    if example.choices and example.group:
        orders = [other.example_id for other in dataset.examples if other.group == example.group]
    lines = [Line("reference", reference_text(example))]
    for label, own in given.items():
        if example.example_id not in own:
            lines.append(Line(label, "(not answered)", faint=True))
            continue
        text, score = own[example.example_id]
        # the score where it is neither 0 nor 1, or how many orders of the choices are right
        count = f"{score:.2f}" if 0.005 <= score < 0.995 else ""
        if len(orders) > 1:
            count = f"{sum(own[one][1] >= MIN_RIGHT for one in orders if one in own)}/{len(orders)}"
        lines.append(Line(label, with_choice(text, example.choices), score >= MIN_RIGHT, count))
    # a line does not end between a choice's letter and its words
    asked = _LETTERED.sub(rf" \1{NO_BREAK}", example.question) if example.choices else example.question
    return Tile(_load(dataset, example), _above(example), asked, lines)


def _caption_tile(dataset: ExampleSet, number: int, given: Given) -> Tile:
    example, lines = dataset.examples[number], []
    for label, own in given.items():
        if example.example_id in own:
            text, score = own[example.example_id]
            lines.append(Line(label, text, number=f"{10 * score:.2f}"))
        else:
            lines.append(Line(label, "(no caption)", faint=True))
    references = example.answers[:MAX_REFERENCES]
    lines += [Line(f"reference {n}", text, faint=True) for n, text in enumerate(references, start=1)]
    above = _above(example)
    if len(example.answers) > MAX_REFERENCES:
        above += f", {MAX_REFERENCES} of {len(example.answers)} references"
    return Tile(_load(dataset, example), above, example.question or None, lines)


def _above(example: Example) -> str:
    return ", ".join(part for part in (example.kind, example.example_id) if part)


def _load(dataset: ExampleSet, example: Example) -> Image.Image | None:
    try:
        return dataset.pictures.load(example.picture)
    except BadSample:  # its place on the page says so
        return None


def _totals(scores: Mapping[str, Scores]) -> str:
    """The task's own metric of each model."""
    metric = next(iter(next(iter(scores.values())).values), None)
    if metric is None:
        raise UserError("pictures of answers: the scores hold no metric; give one or more")
    return f"{metric} over all answers: " + ", ".join(
        f"{name} {one.values[metric]:.1f}" for name, one in scores.items()
    )


def _legend(tiles: Sequence[Tile]) -> str:
    """What the marks and numbers that occur mean."""
    numbers = [line.number for tile in tiles for line in tile.lines]
    words = [f"{RIGHT} right, {WRONG} wrong"]
    if any("." in number for number in numbers):
        words.append(f"0.60: a score between, {MIN_RIGHT} or more is marked as right")
    if any("/" in number for number in numbers):
        words.append("3/4: right in three of four orders of the choices, the first of which is shown")
    return "; ".join(words)
