"""Captions of pictures: `make eval-caption`.

python -m evals caption                                           the last run and a random encoder, on scenes
python -m evals caption --encoder runs/a --task flickr1k          photographs; also coco_captions, textcaps, nocaps
python -m evals caption --encoder runs/a --task coco_captions --data /data/coco --generation.num_beams 4
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import Namespace

from evals.multimodal.album import draw_captions
from evals.multimodal.answers import score
from evals.multimodal.command import (
    Answered,
    Command,
    about_task,
    build_parser,
    differences,
    first_of_each,
    pages_folder,
    run_main,
    show,
    summarise,
    task_names_of,
    task_places,
    where_all_lies,
)
from evals.multimodal.data.tasks import CAPTIONS, load_task, task_names
from evals.multimodal.examples import Answer, InstructionSet
from evals.multimodal.job import Outcome, Task
from evals.multimodal.metrics.variety import most_frequent_caption
from evals.results import EvalResult, append, code_hash, command_line, finished, hash_of
from pretrain.types import UserError

DEFAULT_TASKS = ("scenes",)
DEFAULT_ROUTES = ("decoder_frozen", "connector")
BASELINE = "most frequent caption"


def baseline(
    task: Task, taught: InstructionSet, options: Namespace, folder: Path, note: Callable[[str], None]
) -> Answered | None:
    """The training captions' most frequent one, said of every picture; None where nothing that is taught is a caption."""
    started = time.perf_counter()
    prompt = task.config.prompt
    captions = [answer for c in taught.conversations for question, answer in c.turns if question == prompt]
    if not captions:
        note(
            f"{task.config.name}: {taught.name} has no captions, so that there is no most frequent one to compare with"
        )
        return None
    text = most_frequent_caption(captions)
    kept = score(
        task.dataset, [Answer(e.example_id, text, "") for e in task.dataset.examples], metric=task.config.metric
    )
    key = {
        "task": "caption_most_frequent",
        "dataset": task.config.name,
        "split": task.dataset.split,
        "seed": options.seed,
        "config_hash": hash_of([taught.identity(), task.dataset.identity(), task.config.metric]),
        "checkpoint_hash": "",
        "code_hash": code_hash(),
    }
    rows = finished(key, options.results)
    if not rows:
        interval = kept.interval()
        for number, (metric, value) in enumerate(kept.scores.values.items()):
            rows.append(
                EvalResult(
                    **key,
                    synthetic=task.dataset.synthetic,
                    metric=metric,
                    value=value,
                    n=len(kept.examples),
                    encoder="none",
                    objective="none",
                    samples_seen=0,
                    training_flops=0.0,
                    run=str(folder),
                    command=command_line(),
                    wall_s=round(time.perf_counter() - started, 1),
                    interval=interval if number == 0 else None,
                    details={"caption": text} if number == 0 else {},
                )
            )
        rows[-1].details["last_of_task"] = True
        append(rows, options.results)
    return Answered(BASELINE, "", Outcome(task, rows, kept, folder))


def run(options: Namespace, note: Callable[[str], None]) -> int:
    started = time.perf_counter()
    if options.data is not None and not options.task:
        known = ", ".join(task_names(CAPTIONS))
        raise UserError(f"--data={options.data}: name what lies there with --task, one of {known}")
    names = options.task or DEFAULT_TASKS
    places = task_places(names, options.data)
    tasks = [load_task(name, path=place, folder=CAPTIONS) for name, place in zip(names, places, strict=True)]
    command = Command(options, kind="caption", tasks=tasks, routes=DEFAULT_ROUTES, note=note, always_taught=True)
    found = command.run()
    folder = pages_folder(options, "caption")
    for task in task_names_of(found):
        first = next(one.outcome.task for one in found if one.outcome.task.config.name == task)
        if one := baseline(first, command.taught_set(), options, folder, note):
            found.append(one)
    report(options, found, folder, started=started)
    return 0


def report(options: Namespace, found: Sequence[Answered], folder: Path, *, started: float) -> None:
    """Table, differences, pictures, and where all lies."""
    show(summarise(found, title="Captions (CIDEr-D x 100; BLEU, ROUGE-L, distinct and repetition in percent)"))
    for line in differences(found):
        print(line)
    for task in task_names_of(found):
        firsts = first_of_each(found, task)
        first = next(iter(firsts.values()))
        page = draw_captions(
            folder / f"captions_{task}.png",
            first.task.dataset,
            {name: one.kept.answers for name, one in firsts.items()},
            {name: one.kept.scores for name, one in firsts.items()},
            about=about_task(first),
            seed=options.seed,
        )
        print(f"captions beside references: {page}")
    where_all_lies(found, options, started=started)


def main(args: Sequence[str] | None = None) -> int:
    parser = build_parser(
        "python -m evals caption", __doc__.split("\n")[0], tasks=task_names(CAPTIONS), routes=DEFAULT_ROUTES
    )
    return run_main(parser, args, run)
