"""Pages of questions with answers, and of captions."""

import itertools
from collections import Counter

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from evals.data.labelled import BadSample, LabelledSet
from evals.detection.sheet import INK, Sheet
from evals.multimodal.album import (
    choose,
    differ_path,
    differing,
    draw_answers,
    draw_captions,
    reference_text,
    with_choice,
)
from evals.multimodal.draw import EMPTY, NO_BREAK, RIGHT, WRONG, Part, Tile, draw_page, printable, shorten, wrap
from evals.multimodal.examples import Answer, Example, ExampleSet, Scores
from pretrain.types import Fault, UserError

SIZES = [(32, 32), (900, 600), (30, 800), (800, 30), (12, 17), (160, 160)]
UNREADABLE = 6
LONG = "the quick brown fox jumps over the lazy dog and then sleeps " * 12
UGLY = [
    *("", "W" * 700, "i" * 700, LONG, "漢字 and\ttabs\nand $x^2$ \\frac <b> %s {}", "   \n ", "short", "a\u0301" * 40),
    "\u0000\ud800 \u200bno letters",
]
LABELS = ("default run", "random", "no image")


class Pictures(LabelledSet):
    """Colour gradients of several sizes; one cannot be read."""

    name, split, classes = "gradients", "test", ("any",)
    label_N = np.zeros(UNREADABLE + 1, dtype=np.int64)

    def load(self, index):
        if index == UNREADABLE:
            raise BadSample(Fault("missing", "6.png", "no such file"))
        width, height = SIZES[index % len(SIZES)]
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[..., 0] = np.linspace(0, 255, width)
        return Image.fromarray(pixels)

    def key(self, index):
        return f"{index}.png"

    def pictures_identity(self):
        return "gradients"


class Asked(ExampleSet):
    name, split, synthetic, repaired = "tiny", "val", True, {}

    def __init__(self, examples):
        self.examples, self.pictures = examples, Pictures()

    def identity(self):
        return "tiny"


def plain(num, kinds=("object",)):
    return Asked(
        [Example(f"q{n}", n % 6, f"question number {n}?", (f"true {n}",), kinds[n % len(kinds)]) for n in range(num)]
    )


def scores(values):
    values = np.asarray(values, dtype=np.float64)
    return Scores({"accuracy": 100 * float(values.mean())}, values, np.arange(len(values)), values)


def answered(dataset, values):
    """Answers and scores: by label, a score of each example; None where it is not answered."""
    known = {label: [(e, v) for e, v in zip(dataset.examples, own) if v is not None] for label, own in values.items()}
    answers = {
        label: [Answer(e.example_id, f"{label} {e.example_id}", "") for e, _ in own] for label, own in known.items()
    }
    return answers, {label: scores([value for _, value in own]) for label, own in known.items()}


@pytest.fixture
def figures(monkeypatch):
    """The figures that are written, by file name."""
    kept = {}
    write = Sheet.write

    def keep(self, path):
        kept[path.name] = self.figure
        return write(self, path)

    monkeypatch.setattr(Sheet, "write", keep)
    return kept


def texts_of(figure):
    return [text.get_text() for text in figure.texts]


def lines_of(figure):
    """Words on one height of a column, left to right, columns apart: [mark, number, name, text]."""
    places = {}
    width = figure.get_size_inches()[0]
    for text in figure.texts:
        x, y = text.get_position()
        # marks stand in the middle of their lines, so that heights differ a little
        near = next(
            (key for key in places if key[0] == (x > 0.5) and abs(key[1] - y) * figure.get_figheight() < 0.03), None
        )
        places.setdefault(near or (x > 0.5, y), []).append((x * width, text))
    return [[text for _, text in sorted(own, key=lambda item: item[0])] for own in places.values()]


def assert_in_place(figure):
    """Lines of text lie on the page, apart from each other and from pictures."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.texts]
    pictures = [axis.get_window_extent(renderer) for axis in figure.axes]
    page = figure.bbox
    for text, box in texts:
        assert page.x0 <= box.x0, text
        assert box.x1 <= page.x1, text
        assert page.y0 <= box.y0, text
        assert box.y1 <= page.y1, text
        on_picture = "the picture cannot be read".startswith(text) or "the picture cannot be read".endswith(text)
        assert on_picture or not any(box.overlaps(picture) for picture in pictures), text
    for (one, first), (other, second) in itertools.combinations(texts, 2):
        assert not first.overlaps(second), (one, other)
    for one, other in itertools.combinations(pictures, 2):
        assert not one.overlaps(other)


def drawn_width(text, *, size, bold=False):
    """In inches, as a figure draws it."""
    figure = Figure(figsize=(20, 1), dpi=110)
    drawn = figure.text(0, 0, text, fontsize=size, weight="bold" if bold else "normal", parse_math=False)
    return drawn.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / 110


# text


@pytest.mark.parametrize("text", UGLY)
@pytest.mark.parametrize(("width", "size", "bold"), [(1.1, 8.0, False), (2.9, 8.5, True), (0.3, 7.0, False)])
def test_wrapped_lines_keep_their_width(text, width, size, bold):
    lines = wrap(text, width, size=size, most=3, bold=bold)
    assert 1 <= len(lines) <= 3
    for line in lines:
        assert drawn_width(line, size=size, bold=bold) <= width


def test_wrap_loses_nothing_that_fits():
    text = "a man with a hat, riding a horse along the beach"
    lines = wrap(text, 1.5, size=8, most=9)
    assert len(lines) > 1
    assert " ".join(lines) == text
    # no word of the next line would have fitted
    for line, after in itertools.pairwise(lines):
        assert drawn_width(f"{line} {after.split()[0]}", size=8) > 1.5
    word = "abcdefghij" * 9
    divided = wrap(word, 1.5, size=8, most=9)
    assert len(divided) > 2
    assert "".join(divided) == word


def test_too_long_ends_with_an_ellipsis():
    lines = wrap(LONG, 2.0, size=8, most=2)
    assert lines[-1].endswith("…")
    assert not lines[0].endswith("…")
    assert LONG.startswith(f"{lines[0]} {lines[1][:-1]}")
    assert shorten("runs/2026/the_last_one", 0.8, size=8, end=True).endswith("last_one")
    assert shorten("runs/2026/the_last_one", 0.8, size=8, end=True).startswith("…")
    assert shorten("short", 0.8, size=8) == "short"


def test_printable():
    assert [printable(text) for text in ("", " \n\t", NO_BREAK)] == [EMPTY] * 3
    assert printable("a\n b\tc \x00d") == "a b c d"
    assert printable("a 漢 b") == "a \N{REPLACEMENT CHARACTER} b"
    # no line ends at such a blank
    assert wrap(f"aaaa bbbb A.{NO_BREAK}red", drawn_width("aaaa bbbb A.", size=8) + 0.01, size=8, most=3) == [
        "aaaa bbbb",
        f"A.{NO_BREAK}red",
    ]


# which examples


def test_choice_is_a_function_of_set_and_seed():
    examples = plain(60, kinds=("a", "b", "c")).examples
    first = choose(examples, range(60), num=12, seed=0)
    assert first == choose(examples, range(60), num=12, seed=0)
    assert first != choose(examples, range(60), num=12, seed=1)
    assert len(set(first)) == 12


def test_choice_is_balanced_over_kinds():
    """50 of a, 2 of b, 8 of c: twelve are 5, 2, 5 whatever the seed; four kinds for three places: three kinds."""
    kinds = ["a"] * 50 + ["b"] * 2 + ["c"] * 8
    examples = [Example(str(n), 0, "", ("x",), kind) for n, kind in enumerate(kinds)]
    for seed in range(5):
        chosen = choose(examples, range(60), num=12, seed=seed)
        assert Counter(kinds[n] for n in chosen) == {"a": 5, "b": 2, "c": 5}
        assert [kinds[n] for n in chosen] == sorted(kinds[n] for n in chosen)
        assert len({kinds[n] for n in choose(examples, range(60), num=2, seed=seed)}) == 2
    assert choose(examples, range(60), num=99, seed=0) == list(range(60))
    assert choose(examples, [3, 55], num=12, seed=0) == [3, 55]


def test_every_example_can_be_chosen():
    examples = plain(10).examples
    seen = set().union(*(choose(examples, range(10), num=2, seed=seed) for seed in range(60)))
    assert seen == set(range(10))


def test_references():
    def text(*answers, choices=()):
        return reference_text(Example("1", 0, "?", answers, choices=choices))

    assert text(*["no"] * 3, *["yes"] * 7) == "yes (7 of 10)"
    assert text("1978") == "1978"
    assert text("12", "twelve") == "12 or twelve"
    assert text(" \n", "x") == f"{EMPTY} or x"
    assert text("", "") == f"{EMPTY} (2 of 2)"
    assert text("b", choices=("red", "blue")) == "b: blue"
    assert with_choice("(C).", ("red", "blue", "green")) == "(C).: green"
    assert [with_choice(words, ("red", "blue")) for words in ("D", "red", "", "a b", "ab")] == [
        "D",
        "red",
        "",
        "a b",
        "ab",
    ]
    assert with_choice("a", ()) == "a"


def test_differing():
    """Alone right: 0. Alone wrong: 3. Not alone: 1, 2. All alike: 4, 5. Not answered by one: 6. 0.5 is right: 7."""
    dataset = plain(8)
    values = {
        "first": [1, 1, 0, 0, 1, 0, 1, 0.5],
        "second": [0, 1, 1, 1, 1, 0, 0, 0.4],
        "third": [0, 0, 0, 1, 1, 0, None, 0],
    }
    given = {
        label: {e.example_id: ("", v) for e, v in zip(dataset.examples, own) if v is not None}
        for label, own in values.items()
    }
    assert differing(dataset, given) == ([0, 7], [3])
    assert differing(dataset, {"first": given["first"]}) == ([], [])


# pages


def test_marks_are_those_of_the_scores(figures, tmp_path):
    dataset = plain(6, kinds=("a", "b"))
    values = {"default run": [1, 0, 0.6, 0.3, 1, 0], "random": [0, 0, 1, 0.5, None, 1]}
    path = draw_answers(tmp_path / "page.png", dataset, *answered(dataset, values), about="tiny val, synthetic", num=6)
    assert path == tmp_path / "page.png"
    figure = figures["page.png"]
    assert_in_place(figure)
    lines = {line[-1].get_text(): line for line in lines_of(figure)}
    for label, own in values.items():
        for number, value in enumerate(own):
            if value is None:
                continue
            mark, *more, name, _ = lines[f"{label} q{number}"]
            assert name.get_text() == label
            assert mark.get_text() == (RIGHT if value >= 0.5 else WRONG)
            assert [text.get_text() for text in more] == ([] if value in (0, 1) else [f"{value:.2f}"])
            assert mark.get_color() == ("#1a7f5a" if value >= 0.5 else "#c2571a")
    assert [text.get_text() for text in lines["(not answered)"]] == ["random", "(not answered)"]
    for number in range(6):
        assert [text.get_text() for text in lines[f"true {number}"]] == ["reference", f"true {number}"]
        assert f"question number {number}?" in lines
    texts = texts_of(figure)
    assert "tiny val, synthetic" in texts
    # of what each has answered: 2.9 / 6 and 2.5 / 5
    assert "accuracy over all answers: default run 48.3, random 50.0" in texts
    assert "6 of 6 questions, drawn at random (seed 0), evenly over 2 kinds" in texts
    assert "✓ right, ✗ wrong; 0.60: a score between, 0.5 or more is marked as right" in texts


def test_differ_page_holds_differing_examples_only(figures, tmp_path):
    """Of 80, 0-29 are right alone and 30-39 wrong alone; eight in proportion are six and two."""
    dataset = plain(80)
    alone = [1] * 30 + [0] * 10
    values = {label: [v if label == LABELS[0] else 1 - v for v in alone] + [1, 0] * 20 for label in LABELS}
    draw_answers(tmp_path / "page.png", dataset, *answered(dataset, values), about="tiny", num=8)
    assert differ_path(tmp_path / "page.png") == tmp_path / "page_differ.png"
    figure = figures["page_differ.png"]
    assert_in_place(figure)
    texts = texts_of(figure)
    shown = [int(text.split()[-1]) for text in texts if text.startswith("true ")]
    assert [n < 30 for n in shown] == [True] * 6 + [False] * 2
    assert len(set(shown)) == 8
    assert max(shown) < 40
    assert "Where default run differs from random and no image" in texts
    assert (
        "right alone on 30 and wrong alone on 10 of 80 questions; shown in proportion, drawn at random (seed 0)"
        in texts
    )
    assert "default run alone is right: 6 of 30" in texts
    assert "default run alone is wrong: 2 of 10" in texts


def test_no_differ_page(figures, tmp_path):
    """Without anything to show, and an earlier page does not stay."""
    dataset = plain(4)
    differ_path(tmp_path / "page.png").write_bytes(b"old")
    alike = {"a": [1, 0, 1, 0], "b": [1, 0, 1, 0]}
    draw_answers(tmp_path / "page.png", dataset, *answered(dataset, alike), about="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["page.png"]
    draw_answers(tmp_path / "page.png", dataset, *answered(dataset, {"a": [1, 0, 1, 0]}), about="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["page.png"]


def test_rotated_choices(figures, tmp_path):
    """Two questions of three orders; MME's pairs, without choices, are shown both."""
    choices = ("red", "blue", "green")
    examples = []
    for number in range(2):
        for shift in range(3):
            order = choices[shift:] + choices[:shift]
            question = f"what colour {number}?\n" + "\n".join(f"{letter}. {c}" for letter, c in zip("ABC", order))
            answer = "ABC"[order.index("blue")]
            examples.append(Example(f"{number}#{shift}", number, question, (answer,), "choice", order, str(number)))
    examples += [Example(f"pair{n}", 0, f"is it {n}?", ("yes",), "pair", (), "one") for n in range(2)]
    dataset = Asked(examples)
    answers = {"model": [Answer(e.example_id, "B", "") for e in examples]}
    own = {"model": scores([e.answers == ("B",) for e in examples])}  # right in the first order only
    draw_answers(tmp_path / "page.png", dataset, answers, own, about="tiny")
    figure = figures["page.png"]
    assert_in_place(figure)
    texts = texts_of(figure)
    assert [text for text in texts if "#" in text] == ["choice, 0#0", "choice, 1#0"]
    assert [text for text in texts if text.startswith("pair, ")] == ["pair, pair0", "pair, pair1"]
    lines = [[text.get_text() for text in line] for line in lines_of(figure)]
    assert lines.count([RIGHT, "1/3", "model", "B: blue"]) == 2
    assert lines.count(["reference", "B: blue"]) == 2
    assert f"what colour 0? A.{NO_BREAK}red" in texts[texts.index("choice, 0#0") + 1]
    assert "4 of 4 questions, drawn at random (seed 0), evenly over 2 kinds" in texts
    assert any("three of four orders" in text for text in texts)


def ugly():
    """Every text in every place, long names, pictures of all sizes and none."""
    examples = [
        Example(
            f"id{n}" * (40 if n == 1 else 1), n % 7, UGLY[n], (UGLY[(n + 1) % 9], *UGLY[(n + 4) % 9 :], "yes"), "kind"
        )
        for n in range(len(UGLY))
    ]
    dataset = Asked(examples)
    labels = ("runs/2026-07-14_12-00_a_long_name/export", "random", "no image at all, what the questions tell")
    answers = {
        label: [Answer(e.example_id, UGLY[(n + place) % 9], "") for n, e in enumerate(examples)]
        for place, label in enumerate(labels)
    }
    return dataset, answers, {label: scores([0, 0.3, 0.6, 0.9, 1, 0, 1, 1, 0.01]) for label in labels}


@pytest.mark.parametrize("draw", [draw_answers, draw_captions])
@pytest.mark.filterwarnings("error")  # letters that the font lacks
def test_ugly_texts_and_pictures(figures, tmp_path, draw):
    path = draw(tmp_path / "ugly.png", *ugly(), about=LONG, num=9)
    with Image.open(path) as page:
        assert 900 <= page.width <= 1400
    figure = figures["ugly.png"]
    assert_in_place(figure)
    texts = texts_of(figure)
    assert texts.count(EMPTY) >= 6  # an empty text and one of blanks, of each model at least
    assert "…_long_name/export" in texts
    assert len(figure.axes) == 9
    shapes = {axis.images[0].get_array().shape[:2] for axis in figure.axes}
    assert shapes >= {(32, 32), (17, 12)}  # as they are, drawn without smoothing
    assert max(max(shape) for shape in shapes) == 640  # 900 x 600 and 800 x 30 are shrunk
    for axis in figure.axes:
        small = max(axis.images[0].get_array().shape[:2]) < 160
        assert axis.images[0].get_interpolation() == ("nearest" if small else "antialiased")


def test_captions(figures, tmp_path):
    """CIDEr-D / 10 is what scores hold."""
    references = tuple(f"reference caption {n}" for n in range(7))
    dataset = Asked([Example("a", 0, "", references), Example("b", 1, "", references[:2])])
    answers, own = answered(dataset, {"trained": [0.1234, 1.0], "most frequent": [0.0, None]})
    draw_captions(tmp_path / "captions.png", dataset, answers, own, about="tiny")
    figure = figures["captions.png"]
    assert_in_place(figure)
    lines = [[text.get_text() for text in line] for line in lines_of(figure)]
    assert ["1.23", "trained", "trained a"] in lines
    assert ["10.00", "trained", "trained b"] in lines
    assert ["0.00", "most frequent", "most frequent a"] in lines
    assert ["most frequent", "(no caption)"] in lines
    assert ["a, 5 of 7 references"] in lines
    assert ["b"] in lines
    assert sum(line[0].startswith("reference ") for line in lines) == 5 + 2
    assert ["reference 5", "reference caption 4"] in lines
    assert not {RIGHT, WRONG} & set(texts_of(figure))
    assert next(text for text in figure.texts if text.get_text() == "1.23").get_color() == INK


def test_pages_are_the_same_each_time(tmp_path):
    dataset = plain(30, kinds=("a", "b"))
    values = {label: [(n % 3 == 0) == (place > 0) for n in range(30)] for place, label in enumerate(LABELS)}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        draw_answers(tmp_path / name / "page.png", dataset, *answered(dataset, values), about="tiny", num=4)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["page.png", "page_differ.png"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("draw", [draw_answers, draw_captions])
def test_bad_input(tmp_path, draw):
    dataset = plain(2)
    answers, own = answered(dataset, {"a": [1, 0]})

    def fails(words, *args, **options):
        with pytest.raises(UserError, match=words):
            draw(tmp_path / "page.png", *args, about="tiny", **options)
        assert not list(tmp_path.iterdir())

    fails("pictures of tiny: num=0, 1 models, 2 examples: give one of each or more", dataset, answers, own, num=0)
    fails("num=.*, 0 models, 2 examples", dataset, {}, {})
    fails("0 examples", Asked([]), answers, own)
    fails("answers of a, but scores of b; give the same models", dataset, answers, {"b": own["a"]})
    fails("1 scores for 2 answers of a; give one for each", dataset, answers, {"a": scores([1])})
    stray = {"a": [answers["a"][0], Answer("q9", "", "")]}
    fails("a answers 'q9', which is no example of val", dataset, stray, own)
    none = Scores({}, own["a"].score_N, np.arange(0), np.zeros(0))
    fails("the scores hold no metric", dataset, answers, {"a": none})


def test_nothing_on_a_page(tmp_path):
    with pytest.raises(UserError, match="there is nothing to draw"):
        draw_page(tmp_path / "p.png", [Part("none", [])], title="", notes=[], picture_width=1, column_width=2)
    tile = Tile(None, "", None, [])
    draw_page(tmp_path / "p.png", [Part("", [tile])], title="one", notes=[], picture_width=1, column_width=2)
    assert (tmp_path / "p.png").stat().st_size > 500
