"""From rows of results to a study's table and verdicts: numbers by hand, gaps said, broken files survived."""

import json
from dataclasses import asdict

import pytest
import yaml

from benchmarks.rows import read_rows, seal
from benchmarks.studies.arms import arm_of, eval_key
from benchmarks.studies.assemble import register, sections, study_section
from benchmarks.studies.load import load_study
from benchmarks.study_kills import write_study
from evals.results import EvalResult


def row(study, name, seed, value, **changes):
    """A sealed line as the runner writes it."""
    arm = arm_of(study, study.row(name), seed=seed)
    evaluation = study.evals["rehearsal"]
    details = {"arm": arm.key, "arm_label": name, "eval": "rehearsal", "eval_key": eval_key(evaluation)}
    details |= {"pretrain_command": f"train {name}", "whole_command": f"evaluate {name}"}
    fields = dict(
        task="rehearsal", dataset="nothing", synthetic=True, split="test", metric="top1", value=value, n=100, seed=seed,
        encoder="runs/x", objective="aimv2", samples_seen=1600, training_flops=2e12, config_hash="c",
        checkpoint_hash=f"{name}{seed}", code_hash="one", run="runs/x", command="evals", wall_s=1.0, details=details,
    )  # fmt: skip
    return json.dumps(seal(asdict(EvalResult(**fields | changes))))


@pytest.fixture
def study(tmp_path):
    return load_study(str(write_study(tmp_path)))


def section_of(study, tmp_path, lines):
    path = tmp_path / "ablations.jsonl"
    path.write_text("\n".join(lines) + "\n")
    found = read_rows(path)
    return study_section(study, found.rows), found.problems


def test_means_differences_and_verdict_by_hand(study, tmp_path):
    """base 10, 12, 14 (mean 12, deviation 2); clip 7, 8, 9: differences -3, -4, -5, mean -4, deviation 1, half width
    4.303 / sqrt(3) = 2.484 (t of 2 degrees): -6.48 to -1.52, below 0: "lower" is supported."""
    lines = [row(study, "base", seed, value) for seed, value in enumerate((10.0, 12.0, 14.0))]
    lines += [row(study, "clip", seed, value) for seed, value in enumerate((7.0, 8.0, 9.0))]
    section, problems = section_of(study, tmp_path, lines)
    assert not problems
    base, clip, compute, weight = section.tables[0].rows
    assert (base.is_base, base.cells[0].value, base.cells[0].std, base.cells[0].n) == (True, 12.0, 2.0, 3)
    assert base.cells[0].difference is None
    cell = clip.cells[0]
    assert (cell.value, cell.difference) == (8.0, -4.0)
    assert cell.difference_interval == pytest.approx((-6.484, -1.516), abs=1e-3)
    assert [trace.value for trace in cell.traces] == [7.0, 8.0, 9.0]
    assert [trace.line for trace in cell.traces] == [4, 5, 6]
    assert cell.traces[0].command == "train clip; evaluate clip"
    assert [one.cells[0].note for one in (compute, weight)] == ["not run", "not run"]
    assert "Not run: clip, compute, weight." in section.tables[0].notes
    (verdict,) = section.verdicts
    assert verdict.outcome == "supported"
    assert "n = 3" in verdict.evidence


def test_rows_of_another_protocol_or_arm_are_left_alone(study, tmp_path):
    other = json.loads(row(study, "clip", 0, 99.0))
    other["details"] |= {"eval_key": "another"}
    foreign = json.loads(row(study, "clip", 0, 98.0, checkpoint_hash="y"))
    foreign["details"] |= {"arm": "another"}
    lines = [row(study, "base", 0, 10.0), *(json.dumps(seal(one)) for one in (other, foreign))]
    section, _ = section_of(study, tmp_path, lines)
    assert section.tables[0].rows[1].cells[0].note == "not run"
    assert section.verdicts[0].outcome == "not run"


def test_seeds_and_versions_that_differ_are_said(study, tmp_path):
    lines = [row(study, "base", seed, 10.0 + seed) for seed in range(3)]
    lines += [row(study, "clip", seed, 9.0, code_hash="two") for seed in range(2)]
    section, _ = section_of(study, tmp_path, lines)
    notes = " ".join(section.tables[0].notes)
    assert "n = 2, 3" in notes
    assert "2 versions of the code" in notes


def test_one_seed_shows_the_interval_over_pictures(study, tmp_path):
    section, _ = section_of(study, tmp_path, [row(study, "base", 0, 10.0, interval=(8.0, 12.0))])
    cell = section.tables[0].rows[0].cells[0]
    assert (cell.n, cell.std, cell.interval) == (1, None, (8.0, 12.0))


def test_a_changed_and_a_cut_line_are_reported_and_the_others_count(study, tmp_path):
    lines = [row(study, "base", seed, 10.0 + seed) for seed in range(3)]
    lines[1] = lines[1].replace('"value": 11.0', '"value": 61.0')
    lines[2] = lines[2][:50]
    section, problems = section_of(study, tmp_path, lines)
    assert [problem.line for problem in problems] == [2, 3]
    assert section.tables[0].rows[0].cells[0].n == 1


def test_the_reports_sections(study, tmp_path):
    """Studies with rows alone; a study that cannot be read is a problem that names its file."""
    folder = tmp_path / "studies"
    folder.mkdir()
    content = (tmp_path / "study.yaml").read_text()
    (folder / "good.yaml").write_text(content)
    (folder / "bad.yaml").write_text("title: x\n")
    rows = yaml.safe_load(content)
    rows["rows"] = [rows["rows"][0], rows["rows"][3]]  # nothing of it was run but the base
    (folder / "base_only.yaml").write_text(yaml.safe_dump({**rows, "claims": []}))
    (tmp_path / "ablations.jsonl").write_text(row(study, "base", 0, 10.0) + "\n" + row(study, "clip", 0, 9.0) + "\n")
    found, problems = sections(tmp_path, folder=folder)
    assert [section.name for section in found] == ["study_good"]
    assert [problem.file for problem in problems] == [str(folder / "bad.yaml")]
    (tmp_path / "ablations.jsonl").unlink()
    assert sections(tmp_path, folder=folder)[0] == []


def test_published_rows_stand_below_ours():
    section = study_section(load_study("objective"), [])
    origins = [row.origin for row in section.tables[0].rows]
    assert origins == sorted(origins, key=["ours", "published", "secondary"].index)
    assert {"ours", "published", "secondary"} == set(origins)
    ours = [cell.note for row in section.tables[0].rows if row.origin == "ours" for cell in row.cells]
    assert set(ours) == {"not run"}
    assert "None of it was run." in section.tables[0].notes


def test_released_encoders_without_weights_say_so():
    section = study_section(load_study("main"), [])
    cells = {row.label: {cell.note for cell in row.cells} for row in section.tables[0].rows if row.origin == "ours"}
    for name in ("CLIP (released)", "SigLIP (released)", "DINOv2 (released)"):
        assert cells[name] == {"weights not given"}


def test_claims_that_were_changed_after_the_first_run_are_said(study, tmp_path):
    """The file as it was before the first run is kept beside the results; a later run does not write it again."""
    folder, results = tmp_path / "studies_now", tmp_path / "ablations.jsonl"
    folder.mkdir()
    now = folder / "study.yaml"
    now.write_text((tmp_path / "study.yaml").read_text())
    results.write_text(row(study, "base", 0, 10.0) + "\n" + row(study, "clip", 0, 9.0) + "\n")
    register([load_study(str(now))], results)
    (section,), problems = sections(tmp_path, folder=folder)
    assert not problems
    assert not [note for note in section.tables[0].notes if "changed" in note]
    now.write_text(now.read_text().replace("expect: lower", "expect: higher"))
    register([load_study(str(now))], results)
    (section,), _ = sections(tmp_path, folder=folder)
    assert [note for note in section.tables[0].notes if "claims were changed after its first run" in note]


def test_own_studies_are_shown_and_rows_of_other_settings_are_counted(study, tmp_path):
    """A study that is no shipped one is known by the file that its run has kept; what belongs to none is a problem."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    results = tmp_path / "ablations.jsonl"
    foreign = json.loads(row(study, "weight", 0, 98.0))
    foreign["details"] |= {"arm": "another"}
    lines = [row(study, "base", 0, 10.0), row(study, "clip", 0, 9.0), json.dumps(seal(foreign))]
    results.write_text("\n".join(lines) + "\n")
    assert sections(tmp_path, folder=folder)[0] == []
    register([study], results)
    (section,), (problem,) = sections(tmp_path, folder=folder)
    assert section.name == "study_study"
    assert problem.message.startswith("1 rows are of no study as it stands now (weight)")


def test_other_evaluations_on_request():
    """`--evals main`: the columns are theirs, claims and published numbers about other columns are left out."""
    study = load_study("objective", evals="main")
    assert study.name == "objective-main"
    assert {"detection", "grounding"} <= set(study.columns)
    assert {claim.column for claim in study.claims} <= set(study.columns)
    assert [row.name for row in study.rows] == [row.name for row in load_study("objective").rows]
