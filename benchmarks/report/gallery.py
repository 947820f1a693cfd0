"""What the suite's own results hold beside studies: pictures, curves, rows of evaluations, costs of benchmarks."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.benchmark_files import costs
from benchmarks.report.run_pictures import run_figures
from benchmarks.report.suite_rows import tables_of
from benchmarks.rows import read_rows
from benchmarks.tables import Figure, Problem, Section, Table

#: What is seen in pictures of this name; others get their file's name.
CAPTIONS = {
    "scenes_curves": "Learning curves of the default runs on generated scenes, by step: cross entropy per caption token (left), "
    "squared error per normalised pixel (right)",
    "scenes_predictions": "Reconstructions and captions on held-out scenes: the picture, what the prefix shows, the predicted "
    "patches, and the generated caption beside the true one",
    "flickr1k_curves": "Learning curves of the run on 875 photographs with captions, by step, with the baselines",
    "look_scenes": "Frozen features of scenes: patches as colours, where the attentive probe looks, nearest others",
    "detection_scenes_examples": "Detections on test scenes: true boxes and predicted ones",
    "detection_scenes_misses": "Failures: the worst misses of the detector on test scenes",
    "detection_scenes_curves": "Learning curves of the detectors, with chance",
    "grounding_scenes_examples": "Grounding on test scenes: where sentences are placed",
    "grounding_scenes_curves": "Learning curves of grounding",
    "vqa_scenes_answers": "Questions about test scenes with their answers, right and wrong",
    "vqa_scenes_by_kind": "Questions about test scenes: percent right by kind of question",
    "captions_scenes": "Captions of test scenes: generated ones and the reference",
}


@dataclass(frozen=True)
class Topic:
    """A section of the gallery.

    Attributes:
        name: of the section.
        title: for people.
        text: in front of its tables.
        stems: files whose names begin with one of these are shown here.
    """

    name: str
    title: str
    text: str
    stems: tuple[str, ...]


#: In the order of the page.
TOPICS = (
    Topic(
        "pretraining",
        "Pre-training: curves, reconstructions, captions",
        "What the objective learns, by step, and what it shows on held-out pictures.",
        ("scenes_curves", "scenes_predictions", "flickr1k"),
    ),
    Topic(
        "frozen",
        "Frozen encoders",
        "Probes, neighbours and few shots on frozen features, next to the same architecture with random weights.",
        ("scenes_frozen", "cifar10_frozen", "look"),
    ),
    Topic("captions", "Captions", "The kept decoder as it is, or a language model on frozen tokens.", ("captions",)),
    Topic(
        "vqa",
        "Questions about pictures",
        "A small language model behind a connector, or the kept decoder, on frozen tokens, next to no picture at all.",
        ("vqa",),
    ),
    Topic("grounding", "Grounding", "A light head on frozen tokens finds what a sentence is about.", ("grounding",)),
    Topic(
        "detection",
        "Detection and segmentation",
        "Mask R-CNN and Grounding DINO on the encoder, which is trained with them.",
        ("detection",),
    ),
)
_OTHER = Topic("other", "Other results", "Files that no other section shows.", ())
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _topic(stem: str) -> Topic:
    return next((topic for topic in TOPICS if stem.startswith(topic.stems)), _OTHER)


def _pictures(results: Path) -> tuple[list[tuple[Topic, Figure]], list[Problem]]:
    found, problems = [], []
    for path in sorted(results.glob("*.png")):
        content = path.read_bytes()
        if not content.startswith(_SIGNATURE) or not content.rstrip().endswith(b"IEND\xaeB`\x82"):
            problems.append(Problem(str(path), None, "this is no whole PNG"))
            continue
        caption = f"{CAPTIONS.get(path.stem, path.stem.replace('_', ' '))}. File: {path}"
        found.append((_topic(path.stem), Figure(path.stem, caption, content, "image/png")))
    return found, problems


def _rows(results: Path, *, shown: frozenset[str]) -> tuple[list[tuple[Topic, list[Table]]], list[Problem]]:
    found, problems = [], []
    for path in sorted(results.glob("*.jsonl")):
        if path.name in shown:
            continue
        read = read_rows(path)
        problems += read.problems
        if read.rows:
            found.append((_topic(path.stem), tables_of(read.rows, name=path.stem)))
    return found, problems


def sections(
    results: Path, *, runs: Path | None = None, shown: frozenset[str] = frozenset()
) -> tuple[list[Section], list[Problem]]:
    """Sections of pictures and of the rows that no study shows, then of runs that are there, then of costs.

    Args:
        results: folder of results.
        runs: folder of runs; None for none.
        shown: names of files of rows that other sections show.
    """
    pictures, problems = _pictures(results)
    rows, wrong = _rows(results, shown=shown)
    problems += wrong
    made = []
    for topic in (*TOPICS, _OTHER):
        tables = [table for owner, some in rows if owner is topic for table in some]
        figures = [figure for owner, figure in pictures if owner is topic]
        if tables or figures:
            made.append(Section(topic.name, topic.title, (topic.text,), tuple(tables), (), tuple(figures)))
    if runs is not None:
        figures, said, wrong = run_figures(runs)
        problems += wrong
        if figures:
            made.append(Section("runs", "Runs on this machine", (said,), figures=tuple(figures)))
    texts, tables, wrong = costs(results)
    problems += wrong
    if texts or tables:
        text = (
            "As the benchmarks measured them, on the machine named below each table; times of shared cores are rough."
        )
        made.append(Section("costs", "Costs and faults", (text, *texts), tuple(tables)))
    return made, problems
