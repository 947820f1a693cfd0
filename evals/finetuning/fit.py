"""Fine-tune and score: one folder with the encoder, the head, the scores and what was predicted."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evals.finetuning.module import FinetuneModule
from evals.finetuning.save import check_savable, save_finetuned
from evals.probe.fit import Loaders, build_trainer, fit_or_go_on, quiet, unless_interrupted, write_predictions
from evals.probe.heads import save_head
from evals.probe.scored import TestScores
from pretrain.files import write_atomically


@dataclass(frozen=True)
class FinetuneOutcome:
    """A fine-tuned encoder.

    Attributes:
        scores: on the test set, with the weights of the last epoch.
        held_out: percent right of the held-out pictures after each epoch.
        encoder: its name for `load_encoder`; None where only `load_finetuned` loads it.
        folder: holds encoder/, head.safetensors, predictions.csv, scores.json, metrics.csv.
    """

    scores: TestScores
    held_out: list[float]
    encoder: str | None
    folder: Path


def fit_finetune(
    module: FinetuneModule,
    loaders: Loaders,
    folder: Path,
    *,
    dataset: str,
    classes: Sequence[str],
    keys: Sequence[str] | None = None,
    accelerator: str = "auto",
) -> FinetuneOutcome:
    """Train, score the test set once with the last weights, and write all of it to `folder`.

    The last weights are taken whatever the held-out pictures say: the schedule ends at a rate near 0, so that nothing is
    chosen, and a run is what its settings make it. What is held out is there to choose settings by.

    An interrupted fit goes on from the last whole epoch; on a CPU the result is, bit for bit, that of an unbroken one.

    Args:
        module: new, in training mode.
        loaders: of the three parts.
        folder: what an interrupted fit with the same settings left there is gone on with.
        dataset: its name, for the records.
        classes: names by label.
        keys: names of the test set's pictures.
        accelerator: Lightning's.

    Raises:
        KeyboardInterrupt: interrupted; whole epochs are kept.
        UserError: too many unreadable pictures, the loss diverged, or an encoder that could not be saved.
    """
    quiet()
    check_savable(module.encoder)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(folder, max_epochs=module.config.epochs, check_val_every_n_epoch=1, accelerator=accelerator)
    fit_or_go_on(trainer, module, loaders.fit, loaders.held, folder)
    unless_interrupted(trainer, lambda: trainer.test(module, loaders.test, verbose=False))
    module.cpu().eval().requires_grad_(False)
    info = {"fine_tuned_on": dataset, "seed": module.seed, "config": asdict(module.config)}
    encoder = save_finetuned(module.encoder, folder / "encoder", info=info)
    outcome = FinetuneOutcome(module.scores, module.held_out, encoder, folder)
    _write(outcome, module, classes=classes, keys=keys)
    return outcome


def _write(
    outcome: FinetuneOutcome, module: FinetuneModule, *, classes: Sequence[str], keys: Sequence[str] | None
) -> None:
    folder, scores = outcome.folder, outcome.scores
    save_head(module.head, folder / "head.safetensors", classes=list(classes))
    content = {
        "test": {"top1": scores.top1, "top5": scores.top5},
        "held_out_top1": outcome.held_out,
        "per_class": dict(zip(classes, scores.per_class, strict=True)),
        "encoder": outcome.encoder,
        "config": asdict(module.config),
        "unreadable": len(module.unreadable),
    }
    write_atomically(folder / "scores.json", (json.dumps(content, indent=2) + "\n").encode())
    write_predictions(folder / "predictions.csv", scores, keys=keys)
