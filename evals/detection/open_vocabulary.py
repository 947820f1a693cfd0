"""Detection by the names of classes, with Grounding DINO: any set in COCO's or LVIS's layout.

The names are the prompt, "person. bicycle. car. ". A box scores for a class by the mean over the tokens of its name (mmdet's
`convert_grounding_to_cls_scores`). Where names do not fit into one prompt (LVIS has 1,203) they take turns in chunks.

Shape letters: B pictures, C channels, S side of the canvas, N objects, K boxes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evals.detection.feeding import DetectionBatch
from evals.detection.mmdet_io import data_sample
from evals.detection.samples import Detections, Objects, Sample
from evals.grounding.dino_config import DinoTraining, GroundingDinoConfig
from evals.grounding.dino_module import DinoModule
from pretrain.rng import draw_rng
from pretrain.types import UserError

#: First character and the one behind the last of each part of a name.
Spans = list[list[int]]


@dataclass(frozen=True)
class Prompt:
    """Names of classes in a row.

    Attributes:
        text: "cat. dog. ".
        labels: the classes' numbers, in the order of the text.
        spans: where each of them stands in the text.
    """

    text: str
    labels: tuple[int, ...]
    spans: tuple[Spans, ...]


def spoken(name: str) -> str:
    """A class's name as text, as mmdet's `clean_name` has it: no brackets, no underscores, small letters.

    Raises:
        UserError: nothing is left.
    """
    words = " ".join(re.sub(r"\(.*\)", "", name).replace("_", " ").lower().split())
    if not re.search(r"\w", words):
        raise UserError(f"class {name!r} has no words to prompt with; give it a name")
    return words


def join_names(labels: Sequence[int], names: Sequence[str]) -> Prompt:
    """The prompt of some classes; `names` are all classes' as :func:`spoken` gives them."""
    text, spans = "", []
    for label in labels:
        spans.append([[len(text), len(text) + len(names[label])]])
        text += f"{names[label]}. "
    return Prompt(text, tuple(labels), tuple(spans))


def chunk_names(names: Sequence[str], lengths: Sequence[int], *, most: int, num_tokens: int) -> list[Prompt]:
    """All classes as prompts of at most `most` names and `num_tokens` tokens each.

    mmdet's `chunked_size` bounds the names alone, and warns where the text is too long for them.

    Args:
        names: of all classes.
        lengths: tokens of each name with its full stop.
    """
    chunks: list[list[int]] = [[]]
    room = num_tokens
    for label, length in enumerate(lengths):
        if chunks[-1] and (len(chunks[-1]) == most or length > room):
            chunks.append([])
            room = num_tokens
        chunks[-1].append(label)
        room -= length
    return [join_names(chunk, names) for chunk in chunks]


def draw_prompt(
    present: Sequence[int],
    names: Sequence[str],
    lengths: Sequence[int],
    *,
    num_tokens: int,
    num_negatives: int,
    full_share: float,
    rng: np.random.Generator,
) -> Prompt:
    """The prompt of a picture in training: its classes and some that it does not have, in random order.

    After mmdet's RandomSamplingNegPos (datasets/transforms/text_transformers.py): in a share of the pictures up to
    `num_negatives` other classes are drawn, in the rest a random number of them; those that are there drop out of the draw, and
    so does what does not fit. Classes that are there come first: only where they fill the prompt do some of them miss it.

    Args:
        present: classes of the picture's objects, each once.
        names: of all classes.
        lengths: tokens of each with its full stop.
        num_tokens: room for them.
        num_negatives: most drawn.
        full_share: share of pictures with the most.
        rng: of this picture at this step.
    """
    kept, room = [], num_tokens
    for label in rng.permutation(np.array(present, dtype=np.int64)).tolist():
        if lengths[label] > room:
            break
        kept.append(label)
        room -= lengths[label]
    most = min(num_negatives, len(names))
    number = most if rng.random() < full_share else int(rng.integers(1, most + 1)) if most else 0
    for label in rng.choice(len(names), size=number, replace=False).tolist():
        if label in present or names[label] in {names[one] for one in kept}:  # LVIS has two that are called "bow"
            continue
        if lengths[label] > room:
            break
        kept.append(label)
        room -= lengths[label]
    return join_names(rng.permutation(np.array(kept, dtype=np.int64)).tolist(), names)


def ask(sample: Sample, prompt: Prompt) -> Sample:
    """A sample with labels that number the prompt's names; objects whose class is not in it are left out."""
    place = {label: number for number, label in enumerate(prompt.labels)}
    objects = sample.objects
    number_N = torch.tensor([place.get(label, -1) for label in objects.label_N.tolist()], dtype=torch.int64)
    kept_N = number_N >= 0
    device = objects.box_N4.device
    found = Objects(objects.box_N4[kept_N.to(device)], number_N[kept_N].to(device), None, objects.crowd_M4)
    return replace(sample, objects=found)


class OpenVocabularyModule(DinoModule):
    """Trains on pictures with boxes and classes, and detects; `answers` are `Detections`.

    Args:
        detector: as of :class:`DinoModule`, and so are the others.
        config: that the detector was built with.
        classes: names, by class number; others than those trained on may be asked for in a new module.
        score: what validation makes of the detections; where it tells "box_ap" and "box_ap50", they make the curve.

    Attributes:
        curve: (epoch, AP, AP50) of the held-out pictures, as far as it has come.
        num_left_out: objects in training whose class did not fit into its picture's prompt.

    Raises:
        UserError: a name without words, or one that fits into no prompt.
    """

    def __init__(
        self,
        detector: nn.Module,
        training: DinoTraining,
        *,
        config: GroundingDinoConfig,
        classes: Sequence[str],
        steps_per_epoch: int,
        seed: int,
        name: str = "data",
        score: Callable[[Sequence[Detections]], dict[str, float]] | None = None,
    ) -> None:
        super().__init__(detector, training, steps_per_epoch=steps_per_epoch, seed=seed, name=name, score=score)
        self.config, self.names = config, [spoken(one) for one in classes]
        language = detector.language_model
        self._room = language.num_spare()
        self._lengths = [language.tokens(f"{one}. ") for one in self.names]
        longest = int(np.argmax(self._lengths))
        if self._lengths[longest] > self._room:
            raise UserError(
                f"class {classes[longest]!r} has {self._lengths[longest]} tokens, dino.language.max_tokens={language.max_tokens} "
                "leaves room for fewer; give more"
            )
        self._chunks = chunk_names(self.names, self._lengths, most=config.chunk_size, num_tokens=self._room)
        self._token_maps = [self._token_map(chunk) for chunk in self._chunks]
        self.num_left_out = 0
        self.curve: list[tuple[float, float, float]] = []

    @property
    def found(self) -> list[Detections]:
        """Of the pass of validation or test that was the last one."""
        return self.answers

    def _token_map(self, prompt: Prompt) -> dict[int, list[int]]:
        """Place of a name in the prompt, from 1, to its tokens: mmdet's form of it."""
        tokenized = self.detector.language_model.tokenizer([prompt.text], return_tensors="pt")
        places, _ = self.detector.get_positive_map(tokenized, list(prompt.spans))
        for label, tokens in zip(prompt.labels, places.values(), strict=True):
            if not tokens:
                raise UserError(f"class {self.names[label]!r} has no token in the text encoder's vocabulary")
        return places

    def data_samples(self, batch: DetectionBatch, *, step: int) -> list[Any]:
        training, samples = self.training_config, []
        for sample in batch.samples:
            prompt = draw_prompt(
                sample.objects.label_N.unique().tolist(),
                self.names,
                self._lengths,
                num_tokens=self._room,
                num_negatives=training.num_negatives,
                full_share=training.full_share,
                rng=draw_rng(self.seed, "grounding/prompt", sample.image_id, attempt=step),
            )
            asked = ask(sample, prompt)
            self.num_left_out += len(sample.objects) - len(asked.objects)
            samples.append(data_sample(asked, text=prompt.text, tokens_positive=list(prompt.spans), stride=self.stride))
        return samples

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.log("train/objects_left_out", float(self.num_left_out), prog_bar=self.num_left_out > 0)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        seen = self.held_out[-1] if self.held_out and not self.trainer.sanity_checking else {}
        if {"box_ap", "box_ap50"} <= seen.keys():
            self.curve.append((self.current_epoch + 1, seen["box_ap"], seen["box_ap50"]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint |= {"curve": [list(point) for point in self.curve], "num_left_out": self.num_left_out}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.curve, self.num_left_out = [tuple(point) for point in checkpoint["curve"]], checkpoint["num_left_out"]

    @torch.no_grad()
    def predict(self, batch: DetectionBatch) -> list[Detections]:
        """What is found, of all classes: `dino.max_per_img` boxes of a picture, by falling score, in the file's pixels."""
        asked = [data_sample(sample, truth=False, text="", stride=self.stride) for sample in batch.samples]
        maps = self.detector.extract_feat(self.pixels(batch))
        found: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in asked]
        for prompt, places in zip(self._chunks, self._token_maps, strict=True):
            label_P = torch.tensor(prompt.labels, device=maps[0].device)
            for parts, boxes in zip(found, self._of_chunk(maps, asked, prompt, places), strict=True):
                parts.append((boxes.bboxes, boxes.scores, label_P[boxes.labels]))
        return [
            _best(sample.image_id, parts, most=self.config.max_per_img)
            for sample, parts in zip(batch.samples, found, strict=True)
        ]

    def _of_chunk(
        self, maps: Sequence[Tensor], asked: list[Any], prompt: Prompt, places: dict[int, list[int]]
    ) -> list[Any]:
        """mmdet's boxes of each picture for the names of one prompt."""
        detector = self.detector
        text = {
            name: value.expand(len(asked), *value.shape[1:])
            for name, value in detector.language_model([prompt.text]).items()
        }
        text["embedded"] = detector.text_feat_map(text["embedded"])
        for sample in asked:
            sample.token_positive_map = places
        states = detector.forward_transformer(maps, text, asked)
        return detector.bbox_head.predict(**states, rescale=True, batch_data_samples=asked)


def _best(image_id: int, parts: Sequence[tuple[Tensor, Tensor, Tensor]], *, most: int) -> Detections:
    box_K4, score_K, label_K = (torch.cat(values) for values in zip(*parts, strict=True))
    order_K = score_K.argsort(descending=True, stable=True)[:most]
    return Detections(
        image_id,
        box_K4[order_K].float().cpu().numpy(),
        score_K[order_K].float().cpu().numpy(),
        label_K[order_K].cpu().numpy(),
    )
