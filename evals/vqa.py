"""Questions about pictures: `make eval-vqa`.

python -m evals vqa                                          the last run, a random encoder and no image at all, on scenes
python -m evals vqa --encoder runs/a --task vqav2 --data /data/vqav2 --config configs/evals/vqa_llava.yaml
python -m evals vqa --encoder ours=runs/a,runs/b --encoder timm:aimv2_large_patch14_224 --task textvqa --task gqa --data /data
python -m evals vqa --route decoder --encoder runs/a         the decoder that the encoder was pre-trained with, fine-tuned
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import Namespace

from evals.multimodal.album import differ_path, draw_answers
from evals.multimodal.chart import draw_by_kind, draw_learning, read_losses
from evals.multimodal.command import (
    Answered,
    Command,
    about_task,
    build_parser,
    by_kind,
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
from evals.multimodal.data.tasks import load_task, task_names
from pretrain.types import UserError

DEFAULT_TASKS = ("scenes_object", "scenes_text", "scenes_choice")
DEFAULT_ROUTES = ("connector", "decoder")


def run(options: Namespace, note: Callable[[str], None]) -> int:
    started = time.perf_counter()
    if options.data is not None and not options.task:
        raise UserError(f"--data={options.data}: name what lies there with --task, one of {', '.join(task_names())}")
    names = options.task or DEFAULT_TASKS
    places = task_places(names, options.data)
    tasks = [load_task(name, path=place) for name, place in zip(names, places, strict=True)]
    found = Command(options, kind="vqa", tasks=tasks, routes=DEFAULT_ROUTES, note=note).run()
    report(options, found, started=started)
    return 0


def report(options: Namespace, found: Sequence[Answered], *, started: float) -> None:
    """Tables, differences, pictures, and where all lies."""
    show(summarise(found, title="Questions about pictures: percent right"))
    show(by_kind(found))
    for line in differences(found):
        print(line)
    for page in pages(options, found):
        print(f"picture: {page}")
    where_all_lies(found, options, started=started)


def pages(options: Namespace, found: Sequence[Answered]) -> list[Path]:
    """Questions with answers, right or wrong; percent by kind; losses over training."""
    folder, made = pages_folder(options, "vqa"), []
    rows = []
    for task in task_names_of(found):
        firsts = first_of_each(found, task)
        if not firsts:
            continue
        first = next(iter(firsts.values()))
        page = draw_answers(
            folder / f"answers_{task}.png",
            first.task.dataset,
            {name: one.kept.answers for name, one in firsts.items()},
            {name: one.kept.scores for name, one in firsts.items()},
            about=about_task(first),
            seed=options.seed,
        )
        made += [one for one in (page, differ_path(page)) if one.is_file()]
        for name, one in firsts.items():
            for kind, told in one.kept.by_kind().items():
                rows.append((task, kind, name, told["value"], tuple(told["interval"]), told["n"]))
    if rows:
        made.append(draw_by_kind(folder / "by_kind.png", rows, title="Percent right by kind of question"))
    curves = {one.short: _losses(one.outcome.folder) for one in reversed(found)}
    if curves := {one.short: curves[one.short] for one in found if curves[one.short]}:
        made.append(draw_learning(folder / "learning.png", curves, title="Loss of answers over training"))
    return made


def _losses(folder: Path) -> list[tuple[int, float]]:
    """Of a training; none where nothing was trained, or for fewer steps than Lightning logs after."""
    try:
        found = read_losses(folder)
    except UserError:
        return []
    return found if any(math.isfinite(loss) for _, loss in found) else []


def main(args: Sequence[str] | None = None) -> int:
    parser = build_parser("python -m evals vqa", __doc__.split("\n")[0], tasks=task_names(), routes=DEFAULT_ROUTES)
    return run_main(parser, args, run)
