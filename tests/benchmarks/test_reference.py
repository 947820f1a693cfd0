"""Published numbers: each one stands in the reference, in its order and under its label."""

import re

import pytest
import yaml

from benchmarks.reference import REFERENCE, load_disagreements, load_reference, reference_notes, reference_rows
from pretrain.types import UserError

#: Tables whose rows are columns there.
TRANSPOSED = ("secondary_main", "paper_9c")
#: The ablations as the reference tells them, a second time by hand: label, ImageNet-1k, VQAv2, TextVQA.
ABLATIONS = {
    "paper_9a": "AIMv1, prefix 72.0/65.4/12.7; Cap, bidirectional 85.1/76.2/34.4; "
    "Cap, prefix 85.4/76.8/36.5; AIMv2, prefix 85.6/76.9/37.5",
    "paper_9b": "CLIP 8k 84.6/74.1/24.6; CLIP 16k 85.2/74.8/26.3; CapPa 8k 84.7/75.1/30.6; AIMv2 8k 85.6/76.9/37.5",
    "paper_9c": "weight 0.2 85.6/76.7/37.4; weight 0.4 85.6/76.9/37.5; weight 0.6 85.6/76.7/37.4",
    "paper_9d": "separate decoders 85.6/77.1/37.2; joint decoder 85.6/76.9/37.5",
    "paper_9e": "width 512 85.3/76.2/35.9; width 1024 85.6/76.9/37.5; width 1536 85.1/76.9/36.9",
    "paper_9f": "depth 8 85.5/76.7/37.0; depth 12 85.6/76.9/37.5; depth 16 85.6/76.9/36.6",
}

SMALL = """
tables:
  one:
    title: One
    source: paper, Table 1
    origin: published
    section: 7
    columns: {a: A, b: B}
    rows:
      - {label: x, values: [1.5, null]}
      - label: y
        values: [2.0, 1481]
        source: README
        origin: secondary
        note: distilled
disagreements:
  - item: it
    sides: [{source: s, says: "1"}, {source: t, says: "2"}]
"""


@pytest.fixture
def write(tmp_path):
    def write_text(text: str = SMALL):
        path = tmp_path / "reference.yaml"
        path.write_text(text)
        return path

    return write_text


@pytest.fixture
def sections(shared_data):
    """Sections of the reference by their number; numbers that belong together are joined by "/"."""
    path = shared_data.parent / "reference" / "aimv2.md"
    if not path.is_file():
        pytest.skip(f"the reference is not at {path}")
    text = re.sub(r"@\d+(?= /|;)", "", path.read_text().replace("**", ""))
    text = re.sub(r"(?<=\.\d) *[|/] *(?=\d)", "/", text)
    parts = re.split(r"^## (\d+)\..*$", text, flags=re.M)
    return {int(number): part for number, part in zip(parts[1::2], parts[2::2])}


def places(numbers, text):
    """Where numbers stand in a row: as printed, none before or behind them."""
    joined = re.escape("/".join(str(number) for number in numbers if number is not None))
    return [found.start() for found in re.finditer(rf"(?<![\d./]){joined}(?![\d/]|\.\d)", text)]


@pytest.mark.shared_data
def test_every_number_stands_in_the_reference(sections):
    """Whole rows in their order; D2's two DINOv2 rows end with a number in brackets, 9c tells constants once."""
    raw, count = yaml.safe_load(REFERENCE.read_text())["tables"], 0
    for name, table in raw.items():
        text = sections[table["section"]]
        values = [row["values"] for row in table["rows"]]
        for row in zip(*values) if name in TRANSPOSED else values:
            count += sum(number is not None for number in row)
            if name == "paper_d2" and row[3] is not None:
                assert re.search(rf"{re.escape('/'.join(map(str, row[:3])))} \((37: )?{row[3]}\)", text)
            elif name == "paper_9c" and len(set(row)) == 1:
                assert f"IN-1k {row[0]} for all" in text
            else:
                assert places(row, text), f"{name}: {row}"
    assert count == sum(
        value is not None for t in load_reference().values() for r in t.rows for value in r.values.values()
    )
    assert count > 450


@pytest.mark.shared_data
def test_labels_stand_before_their_numbers(sections):
    """The words before a row's numbers, back to where its clause begins, are begun by words of the label."""
    checked = 0
    for name, table in load_reference().items():
        if name in (*TRANSPOSED, *ABLATIONS, "paper_6", "paper_d1_coco", "paper_d1_lvis", "paper_d2", "vqa_baseline"):
            continue
        text = sections[table.section]
        for row in table.rows:
            found = places(row.values.values(), text)
            clauses = [re.sub(r"\([^()]*\)", "", text[:at]).rstrip(" |:") for at in found]
            befores = [re.split(r"[;:\n,.|(]", clause)[-1].split() for clause in clauses]
            words = [*re.split(r"[ ,]+", row.label), *row.label.split("-")]
            assert any(
                all(any(word.startswith(said) for word in words) for said in before[-2:]) for before in befores
            ), f"{name}, {row.label}: {befores}"
            checked += 1
    assert checked > 50


@pytest.mark.shared_data
def test_columns_of_the_large_table(sections):
    titles = "IN1k | iNat | C10 | C100 | Food | DTD | Pets | Cars | CAM17 | PCAM | RxRx1 | EuroSAT | fMoW | Infog"
    assert f"| model | {titles} |" in sections[7]
    assert list(load_reference()["paper_3"].columns) == [
        *("in1k", "inat18", "cifar10", "cifar100", "food101", "dtd", "pets", "cars", "camelyon17", "pcam", "rxrx1"),
        *("eurosat", "fmow", "infograph"),
    ]
    for names in ("VQAv2/GQA/OKVQA/TextVQA/DocVQA/InfoVQA/ChartQA/SciQA/COCO/TextCaps/NoCaps/SEED/MMEp",):
        assert names in sections[7]
        ours = [name.removesuffix("_cider").removesuffix("_points") for name in load_reference()["paper_7"].columns]
        assert ours == names.lower().replace("mmep", "mme").split("/")


@pytest.mark.shared_data
def test_the_secondary_tables_as_they_stand(sections):
    tables = load_reference()
    main, lines = tables["secondary_main"], sections[11].splitlines()
    assert f"| task | {' | '.join(row.label for row in main.rows)} |" in lines
    for column, title in main.columns.items():
        numbers = "/".join(str(row.values[column]) for row in main.rows)
        assert f"| {title} | {numbers} |" in lines
    for row in tables["secondary_ablation"].rows:
        claim = row.note.removeprefix("claim: ")
        assert f"| {row.label} | {'/'.join(map(str, row.values.values()))} | {claim} |".replace("|  |", "| |") in lines


@pytest.mark.shared_data
def test_disagreements_are_those_of_the_reference(sections):
    # the first row is the head, the second its rule
    items = [line.split("|")[1].strip() for line in sections[9].splitlines() if line.startswith("|")][2:]
    ours = [one.item for one in load_disagreements()]
    assert len(ours) == len(items)
    assert [a for a, b in zip(ours, items) if a != b] == ["AIMv2-L on ImageNet-1k"]  # there: what blogs say, in quotes
    for one in load_disagreements():
        for _, says in one.sides:
            for number in re.findall(r"\d[\d.,/]*\d", says):
                assert number in sections[9], f"{one.item}: {number}"


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_by_hand(name):
    for row, text in zip(load_reference()[name].rows, ABLATIONS[name].split("; "), strict=True):
        label, _, numbers = text.rpartition(" ")
        assert row.label == label
        assert list(row.values) == ["in1k", "vqav2", "textvqa"]
        assert list(row.values.values()) == [float(number) for number in numbers.split("/")]


def test_sources_and_origins():
    for name, table in load_reference().items():
        for row in table.rows:
            assert (row.origin == "secondary") == (row.source == "secondary summary") == name.startswith("secondary")
            assert row.source.startswith(("paper, Table ", "README of ", "secondary summary"))


def test_lines_are_those_of_the_file():
    lines = REFERENCE.read_text().splitlines()
    for table in load_reference().values():
        for row in table.rows:
            assert f"label: {row.label}" in lines[row.line - 1].replace('"', "")


def test_rows_beside_ours(write):
    table = load_reference(write())["one"]
    first, second = reference_rows(table, {"ours_b": "b", "other": None, "ours_a": "a"})
    assert (first.label, first.origin, first.detail) == ("x", "published", "")
    assert [cell.value for cell in first.cells] == [None, None, 1.5]
    assert [cell.note for cell in first.cells] == ["not published", "not published", ""]
    [trace] = first.cells[2].traces
    assert (trace.line, trace.command, trace.value, trace.seed) == (10, "paper, Table 1", 1.5, None)
    assert (second.origin, second.detail) == ("secondary", "distilled")
    assert second.cells[0].traces[0].command == "README"
    assert (second.cells[0].value, second.cells[0].n, second.cells[0].std) == (1481, 0, None)
    assert [row.label for row in reference_rows(table, {"ours_b": "b"})] == ["y"]
    assert reference_notes(table) == ("paper, Table 1; README: One.",)
    with pytest.raises(UserError, match=r"table 'one' has no column 'c' \(for our 'ours_c'\); there are a, b"):
        reference_rows(table, {"ours_c": "c"})


def test_the_projects_file_is_named_from_its_root():
    table = load_reference()["paper_9a"]
    assert table.file == "benchmarks/reference.yaml"
    assert reference_rows(table, {"x": "in1k"})[0].cells[0].traces[0].file == "benchmarks/reference.yaml"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[1.5, null]", "[1.5]", r"table 'one', row 1 \('x'\): 1 values to 2 columns; give one for each of a, b"),
        ("[1.5, null]", "[1.5, '2']", r"row 1 \('x'\), column 'b': '2' is no number"),
        ("[1.5, null]", "[.nan, 2]", r"row 1 \('x'\), column 'a': nan is no number"),
        ("[1.5, null]", "[true, 2]", r"column 'a': True is no number"),
        ("[1.5, null]", "7", r"row 1 \('x'\): 7 to 2 columns"),
        ("{label: x, values", "{label: x, note: 5, values", r"row 1: note is 5; give text"),
        (
            "{label: x, values",
            "{label: x, seeds: 3, values",
            r"row 1: field 'seeds' is unknown; known are label, values",
        ),
        ("{label: x, values: [1.5, null]}", "{label: x}", r"row 1: field 'values' is missing"),
        ("label: y", "label: x", r"table 'one': row 'x' is there twice"),
        ("origin: published", "origin: mine", r"row 1 \('x'\): origin 'mine' is unknown; give published or secondary"),
        ("    source: paper, Table 1\n", "", r"table 'one': field 'source' is missing"),
        ("    section: 7\n", "    section: seven\n", r"section is 'seven'"),
        ("{a: A, b: B}", "[a, b]", r"columns is \['a', 'b'\]; give titles by name"),
        ("{a: A, b: B}", "{a: A, a: B}", r"tables: one: columns: 'a' is there twice"),
        ("disagreements:", "  one:\n    title: Two\ndisagreements:", r"tables: 'one' is there twice"),
        ("disagreements:", "others:", r"field 'others' is unknown"),
        ("tables:", "tables: [", r"cannot be read"),
    ],
)
def test_a_wrong_file_says_where(write, old, new, said):
    assert old in SMALL
    path = write(SMALL.replace(old, new, 1))
    with pytest.raises(UserError, match=said) as raised:
        load_reference(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_wrong_disagreements_and_files(write, tmp_path):
    assert load_disagreements(write())[0].sides == (("s", "1"), ("t", "2"))
    with pytest.raises(UserError, match=r"disagreement 1 \('it'\) has no two sides"):
        load_disagreements(write(SMALL.replace(', {source: t, says: "2"}', "")))
    with pytest.raises(UserError, match="says is 2; give text"):
        load_disagreements(write(SMALL.replace('"2"', "2")))
    with pytest.raises(UserError, match="cannot be read"):
        load_reference(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="holds no fields"):
        load_reference(write("- 1"))
    with pytest.raises(UserError, match="tables is missing"):
        load_reference(write("disagreements: []"))
