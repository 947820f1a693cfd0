"""The suite's own results: what is committed, and runs that lie about."""

import json
from pathlib import Path

from benchmarks.report.gallery import CAPTIONS, sections
from benchmarks.report.run_pictures import finished_runs, run_figures

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def make_run(folder, *, finished=True):
    (folder / "pictures").mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,train/text_ce,val/text_ce\n0,5.0,\n10,4.0,\n20,3.0,2.5\n")
    (folder / "pictures" / "step_0000010.png").write_bytes(b"early")
    (folder / "pictures" / "step_0000020.png").write_bytes(b"late")
    if finished:
        (folder / "summary.json").write_text(json.dumps({"baseline": {"text_ce": 6.0}}))
    return folder


def test_all_committed_pictures_are_shown_with_a_caption_that_names_the_file():
    made, problems = sections(RESULTS)
    figures = {figure.name: figure for section in made for figure in section.figures}
    pictures = sorted(path.stem for path in RESULTS.glob("*.png"))
    assert sorted(figures) == pictures
    assert not problems
    for name, figure in figures.items():
        assert figure.caption.endswith(f"{name}.png")
        assert figure.caption.startswith(CAPTIONS[name])
    homes = {figure.name: section.name for section in made for figure in section.figures}
    assert homes["detection_scenes_misses"] == "detection"
    assert homes["scenes_curves"] == "pretraining"
    assert homes["look_scenes"] == "frozen"


def test_costs_by_hand():
    made, _ = sections(RESULTS)
    tables = {table.name: table for section in made if section.name == "costs" for table in section.tables}
    first = json.loads((RESULTS / "throughput.json").read_text())["steps"][0]
    row = tables["throughput_steps"].rows[0]
    assert row.label == "nano, fp32, not compiled"
    assert [cell.value for cell in row.cells][:2] == [first["imgs_per_s"], first["step_ms"]]
    assert row.cells[3].value == 100 * first["share_of_gemm"]
    assert tables["inference_rows"].rows[0].cells[1].value == 85603584 / 1e6


def test_runs_that_are_there(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "half", finished=False)
    (tmp_path / "latest").symlink_to("a")
    assert [run.name for run in finished_runs(tmp_path)] == ["a"]
    figures, said, problems = run_figures(tmp_path)
    assert [figure.name for figure in figures] == ["run_curves", "run_a_pictures"]
    assert figures[0].content.startswith(b"\x89PNG")
    assert figures[1].content == b"late"
    assert "The 1 newest" in said
    assert not problems


def test_a_run_whose_files_are_broken_is_a_problem(tmp_path):
    (make_run(tmp_path / "a") / "summary.json").write_text('{"baseline"')
    figures, _, problems = run_figures(tmp_path)
    assert [figure.name for figure in figures] == ["run_a_pictures"]
    assert "curves of a could not be drawn: JSONDecodeError" in problems[0].message
