import json

import pytest

from benchmarks.sweep.report import sections
from benchmarks.sweep.summary import sealed, without_places


def trial(number, value, state="COMPLETE", **changes):
    return {
        "number": number,
        "state": state,
        "value": value,
        "params": {"model.optim.lr": 1e-3 * (number + 1)},
        "seconds": 60.0,
        "retries": 0,
        "reason": "",
    } | changes


def summary(**changes):
    return sealed(
        {
            "name": "one",
            "title": "One",
            "command": "python -m benchmarks.sweep one.yaml",
            "base": "base.yaml",
            "space": {"model.optim.lr": "numbers"},
            "objective": {"title": "val/loss", "direction": "minimize"},
            "trials": [trial(0, 0.5), trial(1, 0.2), trial(2, None, "PRUNED"), trial(3, 0.4)],
            "importance": {"model.optim.lr": 0.7, "model.optim.weight_decay": 0.3},
            "importance_note": "fANOVA",
            "config_hash": "0",
        }
        | changes
    )


def write(tmp_path, content, name="one"):
    (tmp_path / "sweeps").mkdir(exist_ok=True)
    (tmp_path / "sweeps" / f"{name}.json").write_text(
        content if isinstance(content, str) else json.dumps(content, indent=1)
    )


def test_a_sweep_is_a_table_and_two_plots(tmp_path):
    write(tmp_path, summary())
    (section,), problems = sections(tmp_path)
    assert problems == []
    table = section.tables[0]
    assert [row.cells[0].value for row in table.rows] == [0.5, 0.2, None, 0.4]
    assert [row.cells[0].note for row in table.rows] == ["", "best", "pruned", ""]
    assert [row.label for row in table.rows[:2]] == ["trial 0 (defaults)", "trial 1"]
    assert table.rows[1].detail == "model.optim.lr: 0.002; 1.0 min"
    assert [figure.name for figure in section.figures] == ["sweep_one_history", "sweep_one_importance"]
    assert all(b"<svg" in figure.content for figure in section.figures)


def test_maximised_sweeps_have_the_largest_as_best(tmp_path):
    write(tmp_path, summary(objective={"title": "top1", "direction": "maximize"}))
    (section,), _ = sections(tmp_path)
    assert [row.cells[0].note for row in section.tables[0].rows] == ["best", "", "pruned", ""]


def test_several_sweeps_are_summed_up_first(tmp_path):
    write(tmp_path, summary())
    write(tmp_path, summary(name="two", title="Two", trials=[trial(0, None, "FAIL", retries=2)]), name="two")
    (overview, one, two), problems = sections(tmp_path)
    assert problems == []
    assert (overview.name, one.name, two.name) == ("sweeps", "sweep_one", "sweep_two")
    first, second = overview.tables[0].rows
    assert (first.label, [cell.value for cell in first.cells]) == ("One", [0.5, 0.2])
    assert first.detail == "val/loss, minimized; model.optim.lr: 0.002"
    assert [cell.note for cell in second.cells] == ["fail", "no trial is complete"]
    assert two.tables[0].rows[0].detail == "model.optim.lr: 0.001; 1.0 min; taken up again 2 times"


@pytest.mark.parametrize("params", [{"a": "x"}, {"a": 0.0}, {"a": 1, "b": 2}, {}])
def test_fields_of_any_kind_can_be_drawn(tmp_path, params):
    for first in ({}, params):
        write(tmp_path, summary(trials=[trial(0, 0.5, params=first), trial(1, 0.2, params=params)]))
        (section,), _ = sections(tmp_path)
        assert ("Right: by a" in section.figures[0].caption) == (first == params == {"a": 0.0})


def test_broken_files_are_problems_and_the_rest_is_shown(tmp_path):
    whole = json.dumps(summary(), indent=1)
    write(tmp_path, summary())
    write(tmp_path, whole[: whole.index('"trials"') + 40], "half")
    write(tmp_path, "[]", "list")
    write(tmp_path, "", "nothing")
    found, problems = sections(tmp_path)
    assert [section.name for section in found] == ["sweep_one"]
    lines = {problem.file: problem.line for problem in problems}
    assert set(lines) == {f"{tmp_path.name}/sweeps/{name}.json" for name in ("half", "list", "nothing")}
    assert lines[f"{tmp_path.name}/sweeps/half.json"] > 5  # the line where it breaks off


@pytest.mark.parametrize("key", [key for key in summary() if key not in ("digest", "importance")])
@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [1], [{}], [{"number": 1, "state": "COMPLETE", "params": {}}]])
def test_no_field_brings_the_report_down(tmp_path, key, value):
    write(tmp_path, summary(**{key: value}))
    found, problems = sections(tmp_path)
    assert len(found) + len(problems) >= 1


def test_a_number_changed_by_hand_is_seen(tmp_path):
    content = summary()
    content["trials"][1]["value"] = 0.1
    write(tmp_path, content)
    found, (problem,) = sections(tmp_path)
    assert len(found) == 1
    assert "changed" in problem.message


def test_no_folder_is_no_sweep(tmp_path):
    assert sections(tmp_path) == ([], [])


def test_published_summaries_name_no_place_of_the_machine():
    content = {"reason": "data.path '/some/where/train.tar' is no file; see runs/a/b and https://x.org/a/b", "n": 1}
    assert without_places(content)["reason"] == "data.path 'train.tar' is no file; see runs/a/b and https://x.org/a/b"
