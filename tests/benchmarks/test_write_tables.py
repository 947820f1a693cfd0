"""Tables as text, against text written by hand."""

import csv
import io
import math
import re

import pytest

from benchmarks.table_text import cell_text, difference_text, escape_latex, escape_markdown, number_text
from benchmarks.tables import Cell, Row, Table, Trace, Verdict
from benchmarks.write_tables import (
    CSV_FIELDS,
    rows_from_csv,
    to_csv,
    to_latex,
    to_markdown,
    verdicts_to_csv,
    verdicts_to_latex,
    verdicts_to_markdown,
)
from pretrain.types import UserError


def published(value: float, source: str) -> Cell:
    return Cell(value, traces=(Trace("benchmarks/reference.yaml", 7, source, value),))


TABLE = Table(
    name="objective",
    title="What is predicted",
    columns=("ImageNet-like", "VQA_like"),
    rows=(
        # published first: the writers put ours in front
        Row("AIMv1", (published(72.0, "paper, Table 9a"), published(65.4, "paper, Table 9a")), "published"),
        Row("patch + text", (Cell(30.14, 1.25, 3, (27.0, 33.2)), Cell(40.0, None, 1, (38.24, 41.86))), is_base=True),
        Row(
            "text only",
            (Cell(32.04, 0.0, 3, (32.0, 32.1), 1.9, (0.3, 3.5)), Cell(note="not run")),
            detail="text_weight: 0 | 50%",
        ),
        Row("full", (published(87.9, "secondary summary"), Cell(note="not published")), "secondary"),
        Row("AIMv2", (published(85.6, "paper, Table 9a"), published(1481, "paper, Table 9a")), "published"),
    ),
    notes=("scenes are synthetic",),
)

MARKDOWN = r"""**What is predicted**

|  | change | ImageNet-like | VQA_like |
|---|---|---:|---:|
| patch + text (base) |  | 30.1 ± 1.2 (n=3) | 40.0 [38.2, 41.9] (n=1) |
| text only | text_weight: 0 \| 50% | 32.0 ± 0.0 (n=3) | not run |
| difference to patch + text |  | +1.9 [0.3, 3.5] |  |

---

*published (paper, Table 9a)*

|  | ImageNet-like | VQA_like |
|---|---:|---:|
| AIMv1 | 72.0 | 65.4 |
| AIMv2 | 85.6 | 1481 |

---

*secondary summary*

|  | ImageNet-like | VQA_like |
|---|---:|---:|
| full | 87.9 | not published |

- a ± b (n=k): mean and standard deviation (k - 1) over k seeds.
- a [b, c] (n=1): one seed with its 95% interval over the pictures that were scored.
- Differences are paired by seed: mean over seeds, own - base, with its 95% interval.
- scenes are synthetic
"""

LATEX = r"""% needs \usepackage{booktabs}; text is UTF-8
\begin{table}
\centering
\caption{What is predicted}
\label{tab:objective}
\begin{tabular}{llrr}
\toprule
 & change & ImageNet-like & VQA\_like \\
\midrule
patch + text (base) &  & $30.1 \pm 1.2$ ($n=3$) & $40.0$ $[38.2, 41.9]$ ($n=1$) \\
text only & text\_weight: 0 \textbar{} 50\% & $32.0 \pm 0.0$ ($n=3$) & not run \\
\quad difference to patch + text &  & $+1.9$ $[0.3, 3.5]$ &  \\
\midrule
\multicolumn{4}{l}{\emph{published (paper, Table 9a)}} \\
\midrule
AIMv1 &  & $72.0$ & $65.4$ \\
AIMv2 &  & $85.6$ & $1481$ \\
\midrule
\multicolumn{4}{l}{\emph{secondary summary}} \\
\midrule
full &  & $87.9$ & not published \\
\bottomrule
\end{tabular}
\par\smallskip\footnotesize
a $\pm$ b (n=k): mean and standard deviation (k - 1) over k seeds.\par
a {[}b, c{]} (n=1): one seed with its 95\% interval over the pictures that were scored.\par
Differences are paired by seed: mean over seeds, own - base, with its 95\% interval.\par
scenes are synthetic\par
\end{table}
"""

VERDICTS = (
    Verdict(
        "VQA: a is higher than b", "supported", "difference +1.9 (95% interval +0.3 to +3.5); n = 3", 2.04, "paper"
    ),
    Verdict("a | b_c", "not run", "no seed was run on both sides", None, "secondary summary"),
)


def test_markdown_by_hand():
    assert to_markdown(TABLE) == MARKDOWN


def test_latex_by_hand():
    assert to_latex(TABLE) == LATEX


@pytest.mark.parametrize(
    ("cell", "text", "difference"),
    [
        (Cell(30.14, 1.25, 3), "30.1 ± 1.2 (n=3)", ""),
        (Cell(30.14, None, 1), "30.1 (n=1)", ""),
        (Cell(30.14, 1.25, 3, note="one run failed"), "30.1 ± 1.2 (n=3), one run failed", ""),
        (Cell(note="weights not given"), "weights not given", ""),
        (Cell(), "no number", ""),
        (Cell(-0.04, 0.0, 2, difference=-0.04), "0.0 ± 0.0 (n=2)", "+0.0"),
        (Cell(1.0, 1.0, 2, difference=-2.0, difference_interval=(-4.06, -0.01)), "1.0 ± 1.0 (n=2)", "-2.0 [-4.1, 0.0]"),
    ],
)
def test_cells(cell, text, difference):
    assert cell_text(cell, 1) == text
    assert difference_text(cell, 1) == difference


def test_published_numbers_get_no_digits():
    assert [cell_text(Cell(value), 2) for value in (85.6, 72.0, 1481)] == ["85.6", "72.0", "1481"]
    assert [cell_text(Cell(value, None, 1), 2) for value in (85.6, 1481)] == ["85.60 (n=1)", "1481.00 (n=1)"]
    assert number_text(-2.0, 2, sign=True) == "-2.00"


def test_sources_are_never_mixed():
    rows = tuple(Row(str(n), (published(1.0, f"paper, Table {n % 2}"),), "published") for n in range(4))
    text = to_markdown(Table("t", "t", ("a",), (*rows, Row("own", (Cell(2.0, None, 1),)))))
    labels = re.findall(r"^\| (\w+) \||^\*([^*]+)\*$", text, re.M)
    assert [one or other for one, other in labels] == [
        *("own", "published (paper, Table 0)", "0", "2", "published (paper, Table 1)", "1", "3")
    ]
    assert "**t**" in text
    assert text.count("**") == 2  # nothing is in bold but the title


def test_a_row_that_does_not_fit():
    wrong = Table("t", "t", ("a", "b"), (Row("own", (Cell(2.0, None, 1),)),))
    for write in (to_markdown, to_latex, to_csv):
        with pytest.raises(UserError, match=r"table 't', row 'own': 1 cells to 2 columns"):
            write(wrong)


def test_a_table_without_rows():
    empty = Table("t", "t", ("a",), ())
    assert rows_from_csv(to_csv(empty)) == ((), ())
    assert "t" in to_markdown(empty)
    assert r"\bottomrule" in to_latex(empty)


def test_csv_gives_every_number_back():
    seeds = tuple(
        Trace("runs/r.jsonl", n, "python -m evals vqa --seed 1, 'x'\n\"y\"", 1 / (n + 3), n) for n in range(3)
    )
    awkward = Row(
        'a, "b"\n| c_d',
        (Cell(1 / 3, 0.1 + 0.2, 3, (-1e-17, 1e22), -2 / 3, (-1.0, 5e-324), "näher", seeds), Cell(note="not run")),
        detail=" blanks ",
    )
    table = Table("t", "t", ("a,b", 'c "d"'), (*TABLE.rows, awkward, awkward))
    assert rows_from_csv(to_csv(table)) == (table.columns, table.rows)


def test_csv_by_hand():
    lines = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert lines[0] == list(CSV_FIELDS)
    assert len(lines) == 1 + 5 * 2
    numbers = ["32.04", "0.0", "3", "32.0", "32.1", "1.9", "0.3", "3.5"]
    assert lines[5] == ["3", "1", "text only", "ours", "0", "text_weight: 0 | 50%", "ImageNet-like", *numbers, "", "[]"]
    assert lines[6][7:16] == ["", "", "0", "", "", "", "", "", "not run"]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        (r"a_b & 50% #1 $x$ {y}", r"a\_b \& 50\% \#1 \$x\$ \{y\}"),
        ("\\section{a}~^", r"\textbackslash{}section\{a\}\textasciitilde{}\textasciicircum{}"),
        ("a < b > c", r"a \textless{} b \textgreater{} c"),
        ("[1] *", "{[}1{]} {*}"),
        ("--encoder x---y -", r"-{}-encoder x-{}-{}-y -"),
        ("1 ± 2 × α ≤ 3 – 4 → 5", r"1 $\pm$ 2 $\times$ $\alpha$ $\leq$ 3 -- 4 $\to$ 5"),
        ("two\nlines", "two lines"),
    ],
)
def test_latex_escapes(text, escaped):
    assert escape_latex(text) == escaped


def test_latex_is_well_formed_whatever_is_in_it():
    nasty = "[*] \\ {a & b} % $ # _ ^ ~ | -- ± <x>"
    row = Row(nasty, (Cell(1.0, 0.1, 2, note=nasty), Cell(note=nasty)), detail=nasty)
    text = to_latex(Table("t", nasty, (nasty, "b"), (row, row), (nasty,)))
    # what is left when escaped characters are gone is markup: braces and dollars pair up, no comment but the first line's
    markup = re.sub(r"\\[{}$&#%_\\]", "", text.split("\n", 1)[1])
    depth = 0
    for char in markup:
        depth += {"{": 1, "}": -1}.get(char, 0)
        assert depth >= 0
    assert depth == 0
    assert markup.count("$") % 2 == 0
    assert not set("%#~^_|<>") & set(markup)
    body = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert [re.sub(r"\\&", "", line).count("&") for line in body] == [3, 3, 3]
    assert not any(line.lstrip().startswith(("[", "*")) for line in body)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("model.text_weight _x_ __init__", r"model.text_weight \_x\_ \_\_init\_\_"),
        ("*a* `b` $c$ ~d~", r"\*a\* \`b\` \$c\$ \~d\~"),
        ("<b> &lt; a & b", "&lt;b> &amp;lt; a & b"),
        ("[0.3, 3.5] [a](b)", r"[0.3, 3.5] \[a](b)"),
        ("two\nlines", "two lines"),
    ],
)
def test_markdown_escapes(text, escaped):
    assert escape_markdown(text) == escaped


def test_verdicts_by_hand():
    assert verdicts_to_markdown(VERDICTS) == (
        "| claim | outcome | evidence | detectable (points) | source of the claim |\n"
        "|---|---|---|---|---|\n"
        "| VQA: a is higher than b | supported | difference +1.9 (95% interval +0.3 to +3.5); n = 3 | 2 | paper |\n"
        "| a \\| b_c | not run | no seed was run on both sides | - | secondary summary |\n"
    )
    latex = verdicts_to_latex(VERDICTS)
    assert (
        r"VQA: a is higher than b & supported & difference +1.9 (95\% interval +0.3 to +3.5); n = 3 & 2 & paper \\"
        in latex
    )
    assert r"a \textbar{} b\_c & not run & no seed was run on both sides & - & secondary summary \\" in latex


def test_verdicts_in_csv_come_back():
    lines = list(csv.DictReader(io.StringIO(verdicts_to_csv(VERDICTS))))
    back = tuple(
        Verdict(**one | {"detectable": float(one["detectable"]) if one["detectable"] else None}) for one in lines
    )
    assert back == VERDICTS


def test_numbers_that_are_none_are_shown_as_they_are():
    assert cell_text(Cell(math.nan, None, 1), 1) == "nan (n=1)"
