"""Two ways from an encoder's tokens to text: a connector into a language model, or the decoder that it was pre-trained with.

A route makes what is trained, the batches that it is trained on, and the answers.

Shape letters: B sequences, D width of the encoder's tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from evals.encoder import TokenEncoder
from evals.multimodal.config import RecipeConfig, TrainConfig, train_settings
from evals.multimodal.connector import ConnectorModel
from evals.multimodal.examples import Answer, Example, ExampleSet, Generation, InstructionSet
from evals.multimodal.feeding import ConversationRows, Pictures, sequences_with_pictures
from evals.multimodal.language import Language, build_small, language_settings, load_language, with_adapters
from evals.multimodal.module import seen
from evals.multimodal.saved import load_connector, save_connector
from evals.multimodal.sequences import SequenceBatch, check_fits, encode_prompt
from evals.multimodal.shots import JoinedPictures, Shots
from pretrain.data.terminal import progress_bar
from pretrain.types import UserError

#: Prompts that are answered at once.
ANSWER_BATCH = 64
Asked = Callable[[Example], str]


class Route(ABC):
    """How an encoder's pictures become answers.

    Attributes:
        name: "connector" or "decoder".
        fast: children of `model` that learn at another rate.
        fast_factor: their rate over the others'.
        model: what answers; None before it is built or loaded.
        encoder: on its device; None for a model that sees no picture.
        is_trained: whether there is anything to train.
    """

    name: str
    fast: tuple[str, ...] = ()
    fast_factor: float = 1.0
    model: nn.Module | None = None
    encoder: TokenEncoder | None
    is_trained: bool = True

    @property
    @abstractmethod
    def train_config(self) -> TrainConfig:
        """How it is trained."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What decides the model, the encoder's weights aside, as plain data."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What a row tells of the model."""

    @abstractmethod
    def build(self, taught: InstructionSet) -> nn.Module:
        """What is to be trained."""

    @abstractmethod
    def rows(self, taught: InstructionSet, pictures: Pictures) -> tuple[Dataset[SequenceBatch], int, list[str]]:
        """Batches by row, the number of rows, and lines about what is left out."""

    @abstractmethod
    def answer(
        self,
        dataset: ExampleSet,
        pictures: Pictures,
        asked: Asked,
        generation: Generation,
        *,
        shots: Shots,
        shot_pictures: Pictures | None = None,
    ) -> list[Answer]:
        """An answer to each example whose picture can be read."""

    def _in_batches(
        self,
        dataset: ExampleSet,
        order: Sequence[int],
        batch_of: Callable[[list[int]], SequenceBatch],
        texts_of: Callable[[SequenceBatch], list[str]],
        *,
        prompt: Callable[[int], str],
    ) -> list[Answer]:
        """Answers in the set's order, made in another, some at once, with a bar.

        Args:
            dataset: what is asked.
            order: examples' numbers, those beside each other alike in length.
            batch_of: examples as a batch; those whose picture cannot be read are not in it.
            texts_of: what is said to a batch on the encoder's device, with tokens.
            prompt: as text, of an example's number.
        """
        device = next(self.model.parameters()).device
        answers: dict[int, Answer] = {}
        with progress_bar() as bar:
            task = bar.add_task(f"answer {dataset.name}", total=len(order))
            for start in range(0, len(order), ANSWER_BATCH):
                part = list(order[start : start + ANSWER_BATCH])
                batch = batch_of(part)
                if len(batch):
                    batch = seen(batch.to(device), self.encoder, precision="fp32")
                    for number, text in zip(batch.number_B.tolist(), texts_of(batch), strict=True):
                        answers[number] = Answer(dataset.examples[number].example_id, text, prompt(number))
                bar.advance(task, len(part))
        return [answers[number] for number in sorted(answers)]

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the trained model."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Take a trained model from where it was saved."""


class ConnectorRoute(Route):
    """A connector and a language model.

    Args:
        recipe: which model, and how it is trained.
        encoder: on its device; None for a model that sees no picture.
        seed: of fresh weights.
    """

    name, fast = "connector", ("connector",)

    def __init__(self, recipe: RecipeConfig, *, encoder: TokenEncoder | None, seed: int) -> None:
        self.recipe, self.encoder, self.seed = recipe, encoder, seed
        self.fast_factor = recipe.train.connector_lr_factor
        self.language: Language | None = None
        self.model: ConnectorModel | None = None

    @property
    def train_config(self) -> TrainConfig:
        return self.recipe.train

    def settings(self) -> dict[str, Any]:
        return {"route": self.name, "lm": language_settings(self.recipe.lm), "train": train_settings(self.recipe.train)}

    def about(self) -> dict[str, Any]:
        return {
            "lm": self.recipe.lm.name,
            "params": sum(p.numel() for p in self.model.parameters()),
            "context_length": self.language.context_length,
        }

    def build(self, taught: InstructionSet) -> ConnectorModel:
        config = self.recipe.lm
        if config.name == "small":
            texts = (text for c in taught.conversations for turn in c.turns for text in turn)
            self.language = build_small(config.small, texts, seed=self.seed)
        else:
            self.language = load_language(config)
        model = self.language.model
        model.requires_grad_(not config.frozen)
        if config.lora is not None:
            model = with_adapters(self.language, config.lora, seed=self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            width = None if self.encoder is None else self.encoder.embed_dim
            self.model = ConnectorModel(self.language, token_dim=width, model=model)
        return self.model

    def rows(self, taught: InstructionSet, pictures: Pictures) -> tuple[ConversationRows, int, list[str]]:
        rows = ConversationRows(taught, pictures, self.language, packed=self.recipe.train.packed)
        rows.leave_out_too_long()
        notes, context = [], self.language.context_length
        if rows.num_too_long:
            notes.append(f"{rows.num_too_long:,} conversations do not fit into {context:,} tokens and are left out")
        if rows.num_cut:
            notes.append(
                f"{rows.num_cut:,} conversations lose their last turns, which do not fit into {context:,} tokens"
            )
        if not len(rows):
            raise UserError(
                f"{taught.name}: no conversation fits into the language model's context of {context:,} tokens; a picture takes "
                f"{pictures.num_patches}"
            )
        return rows, len(rows), notes

    def answer(
        self,
        dataset: ExampleSet,
        pictures: Pictures,
        asked: Asked,
        generation: Generation,
        *,
        shots: Shots,
        shot_pictures: Pictures | None = None,
    ) -> list[Answer]:
        generation.check()
        num_own = len(dataset.pictures)
        if shots.num and pictures.num_patches:
            pictures = JoinedPictures(pictures, shot_pictures, num_first=num_own)
        prompts = []
        for example in dataset.examples:
            shown = shots.draw(example.picture)
            pairs = [(shot.question, shot.answer) for shot in shown]
            encoded, text = encode_prompt(
                self.language, asked(example), with_picture=pictures.num_patches > 0, shots=pairs
            )
            length = encoded.length(pictures.num_patches)
            about = f"{dataset.name}: example {example.example_id!r}"
            check_fits(length, self.language.context_length, about=about, max_tokens=generation.max_tokens)
            prompts.append((encoded, text, [*(num_own + shot.picture for shot in shown), example.picture], length))
        order = sorted(range(len(prompts)), key=lambda number: prompts[number][3])
        self.model.eval()

        def batch_of(part: list[int]) -> SequenceBatch:
            return sequences_with_pictures(
                [prompts[number][0] for number in part],
                [prompts[number][2] for number in part],
                pictures,
                number_B=np.array(part),
                filler_id=self.language.filler_id,
                pad_left=True,
            )

        def texts_of(batch: SequenceBatch) -> list[str]:
            return self.model.answer(batch, generation)

        return self._in_batches(dataset, order, batch_of, texts_of, prompt=lambda number: prompts[number][1])

    def save(self, folder: Path) -> None:
        save_connector(self.model, self.recipe.lm, folder)

    def load(self, folder: Path) -> None:
        width = None if self.encoder is None else self.encoder.embed_dim
        self.model = load_connector(folder, self.recipe.lm, token_dim=width)
        self.language = self.model.language


def generation_for(base: Generation, *, max_tokens: int) -> Generation:
    """A task's: its own most tokens, the rest as the user has it."""
    return replace(base, max_tokens=max_tokens)
