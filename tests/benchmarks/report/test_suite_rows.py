"""Rows of files as tables: what is one number over seeds, and what is not."""

import math
from pathlib import Path

import pytest

from benchmarks.report.suite_rows import metric_title, tables_of
from benchmarks.rows import read_rows

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def tables(results, name="suite", **files):
    folder = results(**files)
    return tables_of(read_rows(folder / f"{name}.jsonl").rows, name=name)


def test_seeds_are_one_number_by_hand(results, row):
    rows = [
        row(seed=s, value=v, encoder=f"runs/a-{s}", checkpoint_hash=f"w{s}") for s, v in enumerate((40.0, 50.0, 66.0))
    ]
    (table,) = tables(results, suite__jsonl=rows)
    (made,) = table.rows
    (cell,) = made.cells
    # mean 52; deviations -12, -2, 14: sum of squares 344, over 2; t of 2 degrees at 97.5% is 4.302653
    std = math.sqrt(172)
    assert (cell.value, cell.n) == (52.0, 3)
    assert cell.std == pytest.approx(std)
    assert cell.interval == pytest.approx((52 - 4.302653 * std / math.sqrt(3), 52 + 4.302653 * std / math.sqrt(3)))
    assert [(t.line, t.seed, t.value) for t in cell.traces] == [(1, 0, 40.0), (2, 1, 50.0), (3, 2, 66.0)]
    assert cell.traces[0].command == "python -m evals imagenet --encoder runs/a-0"
    assert any("Synthetic" in note for note in table.notes)


def test_one_seed_has_the_interval_over_pictures(results, row):
    (table,) = tables(results, suite__jsonl=[row(interval=[45.0, 55.0])])
    cell = table.rows[0].cells[0]
    assert (cell.value, cell.std, cell.n, cell.interval) == (50.0, None, 1, (45.0, 55.0))


def test_two_encoders_of_one_seed_are_never_averaged(results, row):
    rows = [
        row(encoder=f"runs/{name}-{s}", checkpoint_hash=f"{name}{s}", seed=s, value=value)
        for name, value in (("a", 10.0), ("b", 90.0))
        for s in (0, 1)
    ]
    (table,) = tables(results, suite__jsonl=rows)
    assert [(one.label.split(" · ")[-1], one.cells[0].value) for one in table.rows] == [
        ("runs/a", 10.0),
        ("runs/b", 90.0),
    ]


def test_settings_of_the_command_tell_rows_apart_and_are_said(results, row):
    command = "python -m evals caption --encoder runs/a-0 --route x --generation.num_beams {} --seed 0"
    rows = [row(config_hash=f"c{n}", value=10.0 * n, command=command.format(n)) for n in (1, 4)]
    (table,) = tables(results, suite__jsonl=rows)
    assert [one.label for one in table.rows] == [
        "knn, aimv2 · --generation.num_beams 1",
        "knn, aimv2 · --generation.num_beams 4",
    ]
    assert [one.cells[0].value for one in table.rows] == [10.0, 40.0]


def test_objectives_samples_and_data_sets_are_kept_apart(results, row):
    rows = [
        row(),
        row(objective="random", encoder="random:runs/a-0", checkpoint_hash="r", samples_seen=0, value=12.0),
        row(samples_seen=9, checkpoint_hash="v", seed=1, value=30.0),
        row(dataset="scenes_color", value=90.0),
    ]
    color, shape = tables(results, suite__jsonl=rows)
    assert [one.cells[0].value for one in shape.rows] == [50.0, 12.0, 30.0]
    assert [one.cells[0].value for one in color.rows] == [90.0]
    assert shape.rows[1].label == "knn, random weights"


def test_every_committed_row_is_behind_exactly_one_number():
    for path in (*sorted(RESULTS.glob("*_scenes.jsonl")), *sorted(RESULTS.glob("*_frozen.jsonl"))):
        read = read_rows(path)
        lines = [
            trace.line
            for table in tables_of(read.rows, name=path.stem)
            for made in table.rows
            for cell in made.cells
            for trace in cell.traces
        ]
        assert sorted(lines) == [one.line for one in read.rows], path.name
        assert not read.problems


def test_the_readme_s_numbers_come_out():
    (shot, *_) = [
        t for t in tables_of(read_rows(RESULTS / "cifar10_frozen.jsonl").rows, name="c") if "few shot" in t.title
    ]
    shown = {made.detail.split("-")[0]: [f"{c.value:.1f} ± {c.std:.1f}" for c in made.cells] for made in shot.rows}
    assert shown["runs/names"] == ["24.4 ± 1.6", "35.3 ± 0.5", "40.0 ± 0.7"]
    assert shown["random:runs/flickr"] == ["15.6 ± 0.4", "20.3 ± 0.5", "22.5 ± 0.4"]


def test_words_for_metrics():
    assert [metric_title(name) for name in ("box_ap50", "mask_ar100", "cider_d")] == [
        "box AP50",
        "mask AR100",
        "CIDEr-D x 100",
    ]
