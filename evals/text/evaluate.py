"""Zero-shot classification and retrieval as jobs: pictures, texts, what counts as right, and the rows of results.

Shape letters: B pictures that could be read, T texts or classes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evals.data.labelled import LabelledSet
from evals.data.loading import set_loader
from evals.results import EvalResult, append, code_hash, command_line, find, hash_of, read
from evals.statistics import wilson
from evals.text.metrics import chance_at_k, class_hits, hits_at_k, mean_per_class, relevance_matrix
from evals.text.prompts import PromptConfig
from evals.text.retrieval_sets import RetrievalSet
from evals.text.scorers import ImageTextScorer
from pretrain.data.terminal import progress_bar
from pretrain.export import save_json
from pretrain.types import Fault, UserError

_BATCH = 32
_TOP_KS, _RECALL_KS = (1, 5), (1, 5, 10)


@dataclass(frozen=True)
class Score:
    """One number, in percent.

    Attributes:
        metric: its name.
        value: of it.
        chance: what guessing gives.
        n: pictures or texts that were scored.
        independent: pictures, which the interval counts, for texts of one picture are hit or missed together; None where the
            value is no share of them, and has no such interval.
    """

    metric: str
    value: float
    chance: float
    n: int
    independent: int | None


@dataclass(frozen=True)
class Job:
    """Something to be evaluated with any scorer.

    Attributes:
        task: "zero_shot" or "retrieval".
        pictures: what is shown.
        names: of the T classes, or the T texts.
        wordings: of each.
        metrics: names of the scores.
        settings: what decides them beside pictures and scorer.
        score: similarities [B, T] and the pictures' indices [B] to scores.
        left_out: pictures that had no usable caption.
    """

    task: str
    pictures: LabelledSet
    names: Sequence[str]
    wordings: Sequence[Sequence[str]]
    metrics: tuple[str, ...]
    settings: dict[str, Any]
    score: Callable[[np.ndarray, np.ndarray], list[Score]]
    left_out: Sequence[Fault] = ()


def classification_job(dataset: LabelledSet, prompts: PromptConfig) -> Job:
    """Which class's wordings fit a picture best.

    Raises:
        UserError: prompts with names that do not fit the classes.
    """
    ks = [k for k in _TOP_KS if k < len(dataset.classes)]  # top5 of five classes says nothing

    def score(similarity_BT: np.ndarray, index_B: np.ndarray) -> list[Score]:
        label_B, n = np.asarray(dataset.label_N)[index_B], len(index_B)
        hits = class_hits(similarity_BT, label_B, ks)
        chance = 100 / len(dataset.classes)
        scores = [Score(f"top{k}", 100 * float(hits[k].mean()), k * chance, n, n) for k in ks]
        return [*scores, Score("mean_per_class", 100 * mean_per_class(hits[1], label_B), chance, n, None)]

    metrics = (*(f"top{k}" for k in ks), "mean_per_class")
    wordings = prompts.word(dataset.classes)
    return Job("zero_shot", dataset, dataset.classes, wordings, metrics, {"wordings": wordings}, score)


def retrieval_job(pictures: RetrievalSet) -> Job:
    """Which text belongs to a picture, and which picture to a text; any text of the picture, any picture that has the text."""
    texts, own = pictures.texts()
    relevant = relevance_matrix(own, num_candidates=len(texts))

    def score(similarity_BT: np.ndarray, index_B: np.ndarray) -> list[Score]:
        relevant_BT = relevant[index_B]
        kept_T = relevant_BT.any(0)  # texts of unreadable pictures alone are out
        relevant_BT, similarity_BT = relevant_BT[:, kept_T], similarity_BT[:, kept_T]
        scores = []
        for name, similarity, right in (
            ("image_to_text", similarity_BT, relevant_BT),
            ("text_to_image", similarity_BT.T, np.ascontiguousarray(relevant_BT.T)),
        ):
            hits = hits_at_k(similarity, right, _RECALL_KS)
            chance = chance_at_k(right, _RECALL_KS, num_candidates=right.shape[1])
            scores += [
                Score(f"{name}_recall@{k}", 100 * float(hits[k].mean()), 100 * chance[k], len(right), len(index_B))
                for k in _RECALL_KS
            ]
        return scores

    metrics = tuple(f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in _RECALL_KS)
    return Job("retrieval", pictures, texts, [[text] for text in texts], metrics, {}, score, pictures.faults)


def similarities(
    scorer: ImageTextScorer, job: Job, *, num_workers: int, text: str
) -> tuple[np.ndarray, np.ndarray, list[Fault], dict[str, Any]]:
    """Similarities [B, T] of the pictures that can be read, their indices [B], the others' faults, and the scorer's notes.

    Raises:
        UserError: too many pictures cannot be read, or scores are no numbers.
    """
    loader = set_loader(job.pictures, scorer.encoder.transform, batch_size=_BATCH, num_workers=num_workers)
    parts, index = [], []
    with progress_bar() as bar:
        task = bar.add_task(text, total=len(job.pictures))
        texts = scorer.prepare(job.wordings)
        for batch in loader:
            if len(batch):
                parts.append(scorer.similarity(batch.image_BCHW, texts))
                index.append(batch.index_B)
            bar.advance(task, len(batch) + len(batch.faults))
    if not parts:
        raise UserError(f"{job.pictures.name}: none of its {len(job.pictures)} pictures can be read")
    similarity_BT = torch.cat(parts).numpy()
    if np.isnan(similarity_BT).any():
        raise UserError(
            f"{scorer.encoder.provenance.spec} on {job.pictures.name}: scores are NaN; its weights are broken"
        )
    return similarity_BT, torch.cat(index).numpy(), [fault for _, fault in loader.faults], scorer.notes(texts)


def run_job(
    job: Job,
    scorer: ImageTextScorer,
    *,
    seed: int,
    results: Path,
    fingerprint: str,
    num_workers: int = 0,
    note: Callable[[str], None] = print,
) -> list[EvalResult]:
    """Rows of the job for one encoder: those in `results` if all are there, else made and appended.

    Args:
        job: what is evaluated.
        scorer: of the encoder.
        seed: of the choice of pictures and of random weights.
        results: file of rows; predictions lie beside it.
        fingerprint: the encoder's.
        num_workers: processes that read pictures.
        note: takes one line about what is reused or left out.

    Raises:
        UserError: as :func:`similarities`.
    """
    started, where = time.perf_counter(), scorer.encoder.provenance
    config = hash_of(
        [job.settings, job.pictures.identity(), scorer.settings(), scorer.encoder.transform.identity(), job.metrics]
    )
    wanted = {"task": job.task, "dataset": job.pictures.name, "split": job.pictures.split, "seed": seed}
    wanted |= {"config_hash": config, "checkpoint_hash": fingerprint, "code_hash": code_hash()}
    known = read(results)
    found = [find(known, {**wanted, "metric": metric}) for metric in job.metrics]
    what = f"{where.spec}, {job.task} on {job.pictures.name}"
    if all(row is not None for row in found):
        note(f"{what}: found in {results}, not made again")
        return found
    similarity_BT, index_B, faults, notes = similarities(scorer, job, num_workers=num_workers, text=what)
    if left_out := [*job.left_out, *faults]:
        note(
            f"{what}: {len(left_out):,} pictures left out; the first: {left_out[0].kind}: {left_out[0].key}: {left_out[0].detail}"
        )
    folder = results.parent / "zeroshot" / f"{job.task}-{job.pictures.name}-{fingerprint}-{config}-s{seed}"
    _save_predictions(job, similarity_BT, index_B, left_out, folder / "predictions.json")
    details = {"scorer": scorer.label, "left_out": len(left_out), "num_texts": len(job.names), **notes}
    if job.pictures.synthetic:
        details["pictures"] = "synthetic"
    rows = [
        EvalResult(
            metric=score.metric,
            value=score.value,
            n=score.n,
            synthetic=job.pictures.synthetic,
            encoder=where.spec,
            objective=where.objective,
            samples_seen=where.samples_seen,
            training_flops=where.training_flops,
            run=str(folder),
            command=command_line(),
            wall_s=round(time.perf_counter() - started, 1),
            interval=None if score.independent is None else wilson(score.value, score.independent),
            details=details | {"chance": score.chance, **scorer.settings()},
            **wanted,
        )
        for score in job.score(similarity_BT, index_B)
    ]
    append(rows, results)
    return rows


def _save_predictions(
    job: Job, similarity_BT: np.ndarray, index_B: np.ndarray, faults: Sequence[Fault], path: Path
) -> None:
    """The five best texts or classes of each picture."""
    order = np.argsort(-similarity_BT, axis=1, kind="stable")[:, :5]
    best = {
        job.pictures.key(int(index)): [job.names[text] for text in row]
        for index, row in zip(index_B, order, strict=True)
    }
    save_json({"best": best, "left_out": [vars(fault) for fault in faults]}, path)
