"""The page as a whole: what is on it, what it needs, and what broken files do to it."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from demo import objective_table, published, study

from benchmarks.report.__main__ import main
from benchmarks.report.build import collect, write
from benchmarks.report.page import page
from benchmarks.report.providers import PROVIDERS, checked
from benchmarks.tables import Cell, Figure, Problem, Row, Section, Table
from pretrain.types import UserError

PNG = b"\x89PNG\r\n\x1a\n....IEND\xaeB`\x82"


class Page(HTMLParser):
    """Tags in their order, ids, and text; fails on tags that do not close in turn."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.ids = [], [], "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def shown():
    return page([study()], [Problem("results/x.jsonl", 7, "cut <short>")], facts={"Python": "3"})


def test_the_page_is_well_formed_and_links_lead_somewhere(shown):
    read = Page(shown)
    assert len(set(read.ids)) == len(read.ids)
    targets = [a["href"].removeprefix("#") for tag, a in read.tags if tag == "a"]
    targets += [a["popovertarget"] for _, a in read.tags if "popovertarget" in a]
    assert targets
    assert set(targets) <= set(read.ids)


def test_nothing_is_asked_from_outside(shown):
    read = Page(shown)
    assert not [tag for tag, _ in read.tags if tag in ("script", "link", "iframe", "object", "base")]
    sources = [a["src"] for _, a in read.tags if "src" in a]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"url\(|@import|https?:", shown)
    assert "default-src 'none'" in shown


def test_a_number_has_its_parts_and_the_rows_behind_it(shown):
    read = Page(shown)
    for part in (
        "51.2 ± 1.0",
        "n = 3 [48.7, 53.7]",
        "Δ −3.4 [−5.0, −1.8]",
        "model.objective.image_weight: 0",
        "not run",
    ):
        assert part in read.text
    behind = read.text.split("text only, ImageNet-like: 51.2 ± 1.0")[1]
    assert behind.startswith(
        "seed 0: 50.2 · results/objective.jsonl, line 10python -m evals imagenet --encoder 'runs/<a> & \"b\"' --seed 0"
    )
    assert "seed 2: 52.2 · results/objective.jsonl, line 12" in behind


def test_published_rows_stand_apart_with_their_source():
    mixed = objective_table()
    ours, other, theirs, secondary = mixed.rows
    text = page(
        [Section("s", "S", tables=(Table("t", "T", mixed.columns, (theirs, ours, secondary, other)),))], [], facts={}
    )
    first, apart = text.split('<tbody class="published">')
    assert "patch + text</th>" not in apart.split("</table>")[0]
    assert "text only" in first
    assert "AIMv2-L" not in first.split("</nav>")[1]
    read = Page(apart.split("</tbody>")[0].join(["<table><tbody>", "</tbody></table>"]))
    assert "published AIMv2 paper, table 3" in read.text
    assert "secondary summary secondary summary, section 4" in read.text


def test_verdicts_are_words_and_not_colour_alone(shown):
    read = Page(shown)
    for badge in ("✓ supported", "✗ contradicted", "? not resolved", "– not run"):
        assert read.text.count(badge) == 2  # at a glance, and beside its claim


def test_problems_are_in_front(shown):
    read = Page(shown)
    assert "results/x.jsonl7cut <short>" in read.text
    assert read.ids.index("problems") < read.ids.index("claims") < read.ids.index("objective_study")


def test_a_number_that_no_row_stands_behind_says_so():
    table = Table("t", "T", ("a",), (Row("r", (Cell(3.0, n=1),)),))
    assert "no row given" in page([Section("s", "S", tables=(table,))], [], facts={})


def test_a_rounded_zero_has_no_minus():
    table = Table("t", "T", ("a",), (Row("r", (Cell(-0.01, n=1),)),))
    assert "−0.0" not in page([Section("s", "S", tables=(table,))], [], facts={})


def test_providers_that_fail_are_named_and_the_others_shown(tmp_path):
    def broken(results):
        raise ZeroDivisionError("by nothing")

    def refused(results):
        raise UserError("configs/x.yaml: field 'rows' is missing")

    providers = {
        "good": lambda results: ([study()], []),
        "benchmarks.nowhere": None,
        "broken": broken,
        "refused": refused,
    }
    (tmp_path / "r").mkdir()
    report = collect(tmp_path / "r", runs=tmp_path, providers=providers)
    assert [section.name for section in report.sections] == ["objective_study"]
    assert [str(problem) for problem in report.problems] == [
        "benchmarks.nowhere: gave no sections: ModuleNotFoundError: No module named 'benchmarks.nowhere'",
        "broken: gave no sections: ZeroDivisionError: by nothing",
        "refused: configs/x.yaml: field 'rows' is missing",
    ]


def test_names_that_meet_and_ragged_tables_are_said():
    ragged = Table("ragged", "R", ("a", "b"), (Row("r", (Cell(1.0),)),))
    table = Table("t", "T", ("a",), (Row("r", (Cell(1.0),)),))
    sections, problems = checked(
        [Section("a", "A", tables=(table, ragged)), Section("a", "B", tables=(table,)), Section("../x", "C")]
    )
    assert [section.name for section in sections] == ["a", "a_2", "x"]
    assert [[t.name for t in section.tables] for section in sections] == [["t"], ["t_2"], []]
    assert len(problems) == 4
    assert any("1 cells for 2 columns" in problem.message for problem in problems)


def test_all_files_are_written_and_old_ones_go(tmp_path):
    report = collect(tmp_path, runs=tmp_path, providers={"demo": lambda results: ([study()], [])})
    out = tmp_path / "out"
    write(report, out, results=[tmp_path])
    first = (out / "index.html").read_bytes()
    empty = collect(tmp_path, runs=tmp_path, providers={})
    (out / "tables" / "own.md").write_text("somebody's")
    write(empty, out, results=[tmp_path])
    assert [path.name for path in (out / "tables").iterdir()] == ["own.md"]
    (out / "tables" / "own.md").unlink()
    write(report, out, results=[tmp_path])
    assert (out / "index.html").read_bytes() == first
    assert sorted(path.name for path in (out / "tables").iterdir()) == sorted(
        f"{name}.{kind}" for name in ("objective", "objective_study_claims") for kind in ("md", "tex", "csv")
    )
    assert [path.name for path in (out / "figures").iterdir()] == ["loss_curve.svg"]
    assert "AIMv2 paper, table 3" in (out / "tables" / "objective.md").read_text()


def broken_files(row, results):
    """Five rows of which one each is cut short, NUL bytes, and changed by hand; a cut benchmark; half a picture."""
    sealed = [json.dumps(row(seed=seed, value=40.0 + seed, checkpoint_hash=f"w{seed}")) for seed in range(5)]
    lines = [sealed[0], sealed[1][:100], "\0" * 40, sealed[3].replace("43.0", "93.0"), sealed[4]]
    return results(
        scenes_frozen__jsonl="\n".join(lines) + "\n",
        throughput__json='{\n "threads": 2,\n "steps": [{"size"',
        feeding__json='{"feeding": 3}',
        look_scenes__png=PNG[:9],
        detection_misses__png=PNG,
    )


def test_broken_files_are_reported_by_line_and_the_rest_is_shown(tmp_path, row, results):
    folder = broken_files(row, results)
    report = collect(folder, runs=tmp_path / "none", providers={})
    found = {(problem.file.split("/")[-1], problem.line) for problem in report.problems}
    assert found == {
        ("scenes_frozen.jsonl", 2),
        ("scenes_frozen.jsonl", 3),
        ("scenes_frozen.jsonl", 4),
        ("throughput.json", 3),
        ("feeding.json", None),
        ("look_scenes.png", None),
    }
    (cell,) = next(s for s in report.sections if s.name == "frozen").tables[0].rows[0].cells
    assert (cell.value, cell.n) == (42.0, 2)  # of 40 and 44: the changed 93 is not among them
    (figure,) = next(s for s in report.sections if s.name == "detection").figures
    assert figure.caption.startswith("detection misses. File: ")


def test_the_command_ends_well_and_strict_does_not(tmp_path, row, results, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.report.build.PROVIDERS", ())
    folder, out = broken_files(row, results), tmp_path / "out"
    args = ["--results", str(folder), "--out", str(out), "--runs", str(tmp_path / "none")]
    assert main(args) == 0
    said = capsys.readouterr()
    assert "6 problems" in said.out
    assert "scenes_frozen.jsonl, line 4: the row was changed after it was written" in said.err
    assert "Problems: 6" in Page((out / "index.html").read_text()).text
    assert main([*args, "--strict"]) == 1


def test_evaluations_and_studies_of_this_machine_stand_before_the_shipped_rows(
    tmp_path, row, results, capsys, monkeypatch
):
    monkeypatch.setattr("benchmarks.report.build.PROVIDERS", ())
    monkeypatch.chdir(tmp_path)
    shipped = results(scenes_frozen__jsonl=[row()])
    (tmp_path / "benchmarks").mkdir()
    shutil.copytree(shipped, "benchmarks/results")
    shutil.copytree(shipped, "runs/results")
    shutil.copy(shipped / "scenes_frozen.jsonl", "runs/results.jsonl")
    assert main([]) == 0
    text = Page(Path("runs/report/index.html").read_text()).text
    assert text.index("(runs)") < text.index("(runs/results)")
    shutil.rmtree("runs")
    assert main([]) == 0
    assert "(runs" not in Page(Path("runs/report/index.html").read_text()).text


def test_no_folder_of_results_is_said(tmp_path):
    report = collect(tmp_path / "nowhere", runs=tmp_path, providers={})
    assert "there is no such folder" in report.problems[0].message


def test_rows_that_a_study_shows_are_not_shown_again(tmp_path, row, results):
    folder = results(objective__jsonl=[row()])
    table = Table("t", "T", ("a",), (Row("r", (published(1.0, "x"),)),))
    alone = collect(folder, runs=tmp_path, providers={})
    assert [section.name for section in alone.sections] == ["other"]
    with_study = collect(folder, runs=tmp_path, providers={"study": lambda results: ([study()], [])})
    assert [section.name for section in with_study.sections] == ["objective_study"]
    other = collect(folder, runs=tmp_path, providers={"s": lambda results: ([Section("s", "S", tables=(table,))], [])})
    assert [section.name for section in other.sections] == ["s", "other"]


def test_figures_keep_their_bytes(tmp_path):
    section = Section("s", "S", figures=(Figure("f", "seen", PNG, "image/png"),))
    report = collect(tmp_path, runs=tmp_path, providers={"s": lambda results: ([section], [])})
    write(report, tmp_path / "out", results=[tmp_path])
    assert (tmp_path / "out" / "figures" / "f.png").read_bytes() == PNG


def test_every_provider_of_the_list_has_its_function():
    import importlib

    for name in PROVIDERS:
        assert callable(importlib.import_module(name).sections)


def test_own_and_shipped_results_stand_behind_each_other(tmp_path, monkeypatch):
    """Two folders with a section of one name: both are shown, the first one's marked, no name is taken twice."""
    from benchmarks.report import build

    def provider(results):
        cell = Cell(1.0 if results.name == "own" else 2.0, n=1)
        table = Table("t", "T", ("c",), (Row("r", (cell,)),))
        return [Section("s", "S", tables=(table,))], []

    monkeypatch.setattr(build, "PROVIDERS", ("p",))
    ask = build.ask
    monkeypatch.setattr(build, "ask", lambda name, own, *, results: ask(name, own or provider, results=results))
    for name in ("own", "shipped"):
        (tmp_path / name).mkdir()
    report = build.collect_all([tmp_path / "own", tmp_path / "shipped"], runs=tmp_path)
    values = {section.title: section.tables[0].rows[0].cells[0].value for section in report.sections if section.tables}
    assert values == {f"S ({(tmp_path / 'own').as_posix()})": 1.0, "S": 2.0}
    assert len({table.name for section in report.sections for table in section.tables}) == 2
    assert not report.problems
