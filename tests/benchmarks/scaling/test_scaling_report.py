import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.scaling.fits import all_fits, frontier
from benchmarks.scaling.report import sections
from benchmarks.scaling.rows import append_once, read_rows

BUDGETS = (320, 640, 1280, 2560, 5120)
WIDTHS = (8, 16, 32, 64)


@pytest.fixture
def results(make_row, tmp_path):
    """Two seeds, 0.01 above and below the law."""
    path = tmp_path / "results" / "scaling" / "small.jsonl"
    for width in WIDTHS:
        for budget in BUDGETS:
            for seed, noise in enumerate((0.01, -0.01)):
                append_once(make_row(width=width, budget=budget, seed=seed, noise=noise), path)
    return path


def test_a_known_law_is_found_again(make_row, tmp_path):
    path = tmp_path / "rows.jsonl"
    for width in WIDTHS:
        for budget in BUDGETS:
            append_once(make_row(width=width, budget=budget), path)
    fits = {(one.kind, one.label): one for one in all_fits(read_rows(path)[0], "loss")}
    law = fits["samples", "w16"].law
    assert law.alpha == pytest.approx(0.5, abs=0.01)
    assert pytest.approx(1 + 3 / 16, abs=0.02) == law.E
    # parameters are 12 width^2: 3 / width is a power of -1/2 of them; jointly E is 1
    joint = fits["joint", "all"].law
    assert (joint.alpha, joint.beta) == (pytest.approx(0.5, abs=0.05), pytest.approx(0.5, abs=0.05))
    # four sizes: too few for E
    assert fits["params", "320 samples"].law.E == 0
    assert "E = 0 was assumed" in fits["params", "320 samples"].note


def test_too_few_points_are_said_to_be(make_row, tmp_path):
    path = tmp_path / "rows.jsonl"
    for budget in BUDGETS[:2]:
        append_once(make_row(budget=budget), path)
    fits = all_fits(read_rows(path)[0], "loss")
    assert all(one.law is None and one.note.startswith("not fitted") for one in fits)


def test_frontier_by_hand(make_row, tmp_path):
    path = tmp_path / "rows.jsonl"
    # seconds are budget x width / 100: 25.6, 51.2 and 102.4; the second costs more than the first and is worse by its noise
    for width, budget, noise in ((8, 320, 0.0), (8, 640, 5.0), (16, 640, 0.0)):
        append_once(make_row(width=width, budget=budget, noise=noise), path)
    best = frontier(read_rows(path)[0], "loss", lambda row: row.seconds)
    assert [(one.row.size, one.row.budget) for one in best] == [("w8", 320), ("w16", 640)]


def test_tables_and_figures(results):
    found, problems = sections(results.parents[1])
    assert not problems
    assert len(found) == 1
    loss, cost, fits = found[0].tables
    row = loss.rows[0]
    assert row.label == "w8, 320 samples"
    cell = row.cells[0]
    expected = 1 + 20 / 320**0.5 + 3 / 8
    assert cell.value == pytest.approx(expected)
    assert cell.n == 2
    # of two values 0.02 apart: 0.02 / sqrt(2); Student's t of one degree is 12.706
    assert cell.std == pytest.approx(0.02 / 2**0.5)
    assert cell.interval == pytest.approx((expected - 0.12706, expected + 0.12706), abs=1e-4)
    assert [(trace.file, trace.line, trace.seed) for trace in cell.traces] == [
        ("scaling/small.jsonl", 1, 0),
        ("scaling/small.jsonl", 2, 1),
    ]
    assert cost.rows[0].cells[0].value == pytest.approx(0.768)
    assert any(line.label.startswith("val/loss against FLOPs") for line in fits.rows)
    for figure in found[0].figures:
        root = ElementTree.fromstring(figure.content)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        text = " ".join("".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text"))
        assert "val/loss" in text
        assert "w64" in text


def test_pictures_are_the_same_for_the_same_rows(results):
    first, second = (sections(results.parents[1])[0][0].figures for _ in range(2))
    assert [one.content for one in first] == [one.content for one in second]


def test_broken_lines_and_odd_losses_are_reported(results, make_row):
    with results.open("ab") as file:
        file.write(b'{"half": ')
    append_once(make_row(width=8, budget=320, seed=2, noise=float("nan")), results)
    found, problems = sections(results.parents[1])
    assert [(one.file, one.line) for one in problems] == [("scaling/small.jsonl", 41)]
    assert found[0].tables[0].rows[0].cells[0].note == "not finite"
    results.write_bytes(b"\x00\xff{]\n")
    assert sections(results.parents[1])[0] == []


def test_no_results_are_no_section(tmp_path):
    assert sections(tmp_path) == ([], [])
