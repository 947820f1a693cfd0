"""Charts of a comparison."""

import math

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg

from evals.detection.sheet import Sheet
from evals.multimodal.chart import draw_by_kind, draw_learning, read_losses, running_mean
from pretrain.types import UserError

LABELS = ("default run", "random", "no image")


@pytest.fixture
def sheets(monkeypatch):
    """The sheets that are written."""
    kept = []
    write = Sheet.write

    def keep(self, path):
        kept.append(self)
        return write(self, path)

    monkeypatch.setattr(Sheet, "write", keep)
    return kept


def rows(tasks=("vqa",), kinds=("object", "text"), labels=LABELS):
    return [
        (
            task,
            kind,
            label,
            60.0 - 10 * place + 5 * row,
            (55.0 - 10 * place + 5 * row, 66.0 - 10 * place + 5 * row),
            1200 + row,
        )
        for task in tasks
        for row, kind in enumerate(kinds)
        for place, label in enumerate(labels)
    ]


def assert_in_place(sheet):
    """Lines of text lie on the page, apart from each other, from the axes' box and from the legend."""
    figure = sheet.figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    (axis,), (legend,) = figure.axes, figure.legends
    boxes = {text.get_text() + str(n): text.get_window_extent(renderer) for n, text in enumerate(figure.texts)}
    boxes["axes"] = axis.get_tightbbox(renderer)
    boxes["legend"] = legend.get_window_extent(renderer)
    page = figure.bbox
    for name, box in boxes.items():
        assert page.x0 <= box.x0, name
        assert box.x1 <= page.x1, name
        assert page.y0 <= box.y0, name
        assert box.y1 <= page.y1, name
        assert not [other for other, second in boxes.items() if other != name and box.overlaps(second)], name


def test_by_kind(sheets, tmp_path):
    path = draw_by_kind(tmp_path / "kinds.png", rows(), title="By kind", chance={("vqa", "text"): 25.0})
    assert path.stat().st_size > 3000
    (sheet,) = sheets
    assert_in_place(sheet)
    (axis,) = sheet.figure.axes
    points = [line for line in axis.lines if len(line.get_xdata()) == 1]
    drawn = sorted((line.get_ydata()[0], line.get_xdata()[0], line.get_marker()) for line in points)
    wanted = rows()
    assert [percent for _, percent, _ in drawn] == [row[3] for row in wanted]  # from the top in the rows' order
    assert [marker for *_, marker in drawn] == ["o", "s", "D"] * 2
    assert len({line.get_color() for line in points}) == 3
    for y, percent, _ in drawn:
        (interval,) = [tuple(line.get_xdata()) for line in axis.lines if tuple(line.get_ydata()) == (y, y)]
        assert interval in {row[4] for row in wanted if row[3] == percent}
    (dashes,) = [line for line in axis.lines if line.get_linestyle() == "--"]
    ys = [y for y, *_ in drawn[3:]]
    assert list(dashes.get_xdata()) == [25.0, 25.0]
    assert min(dashes.get_ydata()) < min(ys)
    assert max(dashes.get_ydata()) > max(ys)
    assert min(dashes.get_ydata()) > drawn[2][0]  # through its own group only
    texts = [text.get_text() for text in sheet.figure.texts]
    assert {"By kind", "object", "text", "n = 1,200", "n = 1,201", "60.0  (55.0 to 66.0)"} <= set(texts)
    assert "vqa" not in texts  # a single task is the title's
    assert [text.get_text() for text in sheet.figure.legends[0].get_texts()] == [*LABELS, "chance"]
    # each number stands beside its point
    for (y, percent, _), text in zip(drawn, [t for t in sheet.figure.texts if " to " in t.get_text()], strict=True):
        assert text.get_text().startswith(f"{percent:.1f}")
        inches = sheet.height - sheet.height * text.get_position()[1]
        top = sheet.height * (1 - axis.get_position().y1)
        assert inches - 0.04 == pytest.approx(top + y, abs=0.03)


@pytest.mark.filterwarnings("error")
def test_by_kind_with_many_tasks_and_long_names(sheets, tmp_path):
    labels = ("runs/" + "long_name" * 20, "b $x^2$", "_hidden", *"defgh")
    given = rows(("first $x$", "second " * 20, "漢"), ("", "yes/no " * 20, "c"), labels)
    given[1] = (*given[1][:5], 7)
    draw_by_kind(tmp_path / "kinds.png", given, title="title " * 60)
    (sheet,) = sheets
    assert_in_place(sheet)
    texts = [text.get_text() for text in sheet.figure.texts]
    assert {"first $x$", "all", "n = 7 to 1,200"} <= set(texts)
    shown = [text.get_text() for text in sheet.figure.legends[0].get_texts()]
    assert len(shown) == 8
    assert shown[0].startswith("…")
    assert shown[1:3] == ["b $x^2$", "_hidden"]
    # beyond six, colour and marker are not both one that was there
    looks = {(line.get_color(), line.get_marker()) for line in sheet.figure.axes[0].lines if len(line.get_xdata()) == 1}
    assert len(looks) == 8


def test_by_kind_of_one_row(sheets, tmp_path):
    draw_by_kind(tmp_path / "one.png", [("t", "", "a", 0.0, (0.0, 0.0), 3)], title="")
    assert_in_place(sheets[0])


def test_by_kind_with_bad_input(tmp_path):
    def fails(words, given):
        with pytest.raises(UserError, match=words):
            draw_by_kind(tmp_path / "k.png", given, title="")

    fails("there are no rows to draw", [])
    fails("vqa, object, random is there twice", [*rows(), rows()[1]])
    fails(r"t, all, a is nan \(0.0 to 1.0\); finite numbers", [("t", "", "a", math.nan, (0.0, 1.0), 3)])


def test_running_mean():
    """Window 3: at the ends of two values; a gap stays one and is left out of its neighbours' means."""
    np.testing.assert_allclose(running_mean(np.array([1.0, 2, 6, 7]), 3), [1.5, 3, 5, 6.5])
    np.testing.assert_allclose(running_mean(np.array([1.0, np.nan, 6, 7]), 3), [1, np.nan, 6.5, 6.5])


@pytest.mark.filterwarnings("error")
def test_learning(sheets, tmp_path):
    few = [(9, 3.0), (19, math.nan), (29, 2.0), (39, math.inf)]
    many = [(n, 2.0 + (-1) ** n) for n in range(200)]
    path = draw_learning(tmp_path / "learning.png", {"few $x": few, "many": many}, title="Loss")
    assert path.stat().st_size > 3000
    (sheet,) = sheets
    assert_in_place(sheet)
    first, faint, mean = sheet.figure.axes[0].lines
    assert list(first.get_xdata()) == [9, 19, 29, 39]
    np.testing.assert_array_equal(first.get_ydata(), [3, np.nan, 2, np.nan])
    assert first.get_marker() == "o"
    assert list(faint.get_ydata()) == [loss for _, loss in many]
    assert faint.get_alpha() < 0.5
    # of nine values in the middle, five are of one kind: 2 + 1/9 or 2 - 1/9
    np.testing.assert_allclose(np.abs(mean.get_ydata()[4:-4] - 2), 1 / 9)
    assert mean.get_color() != first.get_color()
    assert mean.get_linestyle() != first.get_linestyle()
    assert sheet.figure.axes[0].get_ylim()[0] == 0
    assert "running mean" in sheet.figure.axes[0].get_ylabel()
    assert [text.get_text() for text in sheet.figure.legends[0].get_texts()] == ["few $x", "many"]


@pytest.mark.parametrize("curves", [{}, {"a": []}, {"a": [(1, math.nan)]}])
def test_learning_without_points(tmp_path, curves):
    with pytest.raises(UserError, match="there are no losses to draw"):
        draw_learning(tmp_path / "l.png", curves, title="")


def test_losses_of_a_logger(tmp_path):
    """As Lightning writes them: rows of other metrics have no loss."""
    logger = CSVLogger(tmp_path, name="", version="")
    logger.log_metrics({"train/loss": 3.5}, step=9)
    logger.log_metrics({"held_out/accuracy": 20.0}, step=9)
    logger.log_metrics({"train/loss": 2.25, "train/lr": 0.1}, step=19)
    logger.save()
    assert read_losses(tmp_path) == [(9, 3.5), (19, 2.25)]
    assert read_losses(tmp_path, column="train/lr") == [(19, 0.1)]
    with pytest.raises(UserError, match=r"metrics.csv: there is no column 'val/loss'; it has .*train/loss"):
        read_losses(tmp_path, column="val/loss")


def test_losses_of_several_attempts(tmp_path):
    """Attempts 1 to 10, then the last: what is done again counts as it was done last."""
    for number in range(1, 11):
        (tmp_path / f"metrics_{number}.csv").write_text(f"step,train/loss\n9,{number}\n{100 + number},1\n")
    (tmp_path / "metrics.csv").write_text("step,train/loss\n105,7\n200,nan\n")
    (tmp_path / "metrics_old.csv").write_text("something else")
    losses = read_losses(tmp_path)
    assert losses[0] == (9, 10.0)
    assert [step for step, _ in losses] == [9, *range(101, 111), 200]
    assert dict(losses)[105] == 7
    assert math.isnan(losses[-1][1])


def test_losses_with_bad_input(tmp_path):
    with pytest.raises(UserError, match=r"metrics.csv: no such file; give the folder"):
        read_losses(tmp_path)
    (tmp_path / "metrics.csv").write_text("")
    with pytest.raises(UserError, match=r"no column 'step'; it has none"):
        read_losses(tmp_path)
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,2\n2,abc\n")
    with pytest.raises(UserError, match=r"metrics.csv line 3: step '2', train/loss 'abc': both must be numbers"):
        read_losses(tmp_path)
