"""The kept decoder's way to text: the decoder that an encoder was pre-trained with, as it is or fine-tuned.

The paper throws the decoder away. Here a question is a text prefix behind the picture's tokens, and a caption has none.

Shape letters: B pairs of question and answer, L text tokens, N patches, V width of the encoder's tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

from evals.encoder import TokenEncoder
from evals.multimodal.config import RecipeConfig, TrainConfig, train_settings
from evals.multimodal.examples import Answer, ExampleSet, Generation, InstructionSet
from evals.multimodal.feeding import Pictures, sequences_with_pictures
from evals.multimodal.kept_decoder import KeptDecoder, load_kept_decoder, load_tuned_decoder
from evals.multimodal.routes import Asked, Route
from evals.multimodal.sequences import Encoded, SequenceBatch
from evals.multimodal.shots import Shots
from evals.multimodal.templates import PICTURE
from evals.text.caption_scorer import RANDOM
from pretrain.export import find_export
from pretrain.objectives.build import exported_objective
from pretrain.types import UserError

#: Most tokens of a question with its answer that the decoder's context is lengthened to; ours.
MAX_LENGTH = 256


class TrainedDecoder(nn.Module):
    """The decoder as `AnswerModule` trains it: batches have one picture and one pair a row."""

    def __init__(self, kept: KeptDecoder) -> None:
        super().__init__()
        self.kept = kept

    def loss(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        return self.kept.loss(batch.tokens_IND, batch.ids_BS, batch.target_BS)


class PairRows(Dataset[SequenceBatch]):
    """Batches of single turns as the decoder reads them; the picture stands in front of the text, not in it."""

    def __init__(self, pairs: Sequence[tuple[int, tuple[str, str]]], pictures: Pictures, kept: KeptDecoder) -> None:
        self.pairs, self.pictures, self.kept, self.filler_id = pairs, pictures, kept, kept.filler_id

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, batch: Sequence[tuple[int, int]]) -> SequenceBatch:
        rows = [row for _, row in batch]
        encoded = self.kept.encode([self.pairs[row][1] for row in rows])
        return text_with_pictures(
            [Encoded(one.ids, one.is_target, np.zeros(len(one.ids), np.int64)) for one in encoded],
            [self.pairs[row][0] for row in rows],
            self.pictures,
            number_B=np.array(rows),
            filler_id=self.filler_id,
        )


def text_with_pictures(
    encoded: Sequence[Encoded], shown: Sequence[int], pictures: Pictures, *, number_B: np.ndarray, filler_id: int
) -> SequenceBatch:
    """Texts with one picture each, which takes no place among the tokens."""
    return sequences_with_pictures(
        encoded, shown, pictures, number_B=number_B, filler_id=filler_id, pictures_in_text=False
    )


class DecoderRoute(Route):
    """The decoder of a run of this suite.

    Args:
        recipe: how it is fine-tuned.
        encoder: that it was pre-trained with, on its device.
        spec: the run, or its untrained twin ("random:RUN", whose decoder is untrained too).
        seed: of fresh weights.
        frozen: take it as it was pre-trained.
        captions: whether captions are written, which it does without being asked.
    """

    fast = ()

    def __init__(
        self,
        recipe: RecipeConfig,
        *,
        encoder: TokenEncoder,
        spec: str,
        seed: int,
        frozen: bool,
        captions: bool = False,
    ) -> None:
        self.recipe, self.encoder, self.spec, self.seed, self.captions = recipe, encoder, spec, seed, captions
        self.name, self.is_trained = ("decoder_frozen", False) if frozen else ("decoder", True)
        kept = self._pretrained()
        # the encoder's weights do not tell which decoder stands behind them
        self._identity = kept.identity()
        self.kept: KeptDecoder | None = kept if frozen else None
        self.model = TrainedDecoder(kept) if frozen else None

    @staticmethod
    def serves(spec: str) -> bool:
        """Whether an encoder has a decoder: runs and exports of this suite that predict text."""
        try:
            folder = find_export(spec.removeprefix(RANDOM))
        except (UserError, OSError):
            return False
        return exported_objective(folder) in ("aimv2", "captioner", "cappa") and (folder / "tokenizer").is_dir()

    def _pretrained(self) -> KeptDecoder:
        device = next(self.encoder.parameters()).device
        return load_kept_decoder(self.spec, encoder=self.encoder, seed=self.seed).to(device).eval()

    @property
    def train_config(self) -> TrainConfig:
        return self.recipe.decoder

    def settings(self) -> dict[str, Any]:
        tuned = train_settings(self.recipe.decoder) if self.is_trained else None
        return {
            "route": self.name,
            "train": tuned,
            "decoder": self._identity,
            "captions": self.captions,
        }

    def about(self) -> dict[str, Any]:
        return {"lm": "kept decoder", "params": sum(p.numel() for p in self.kept.parameters())}

    def _pairs(self, taught: InstructionSet) -> list[tuple[int, tuple[str, str]]]:
        """Picture, question and answer of every turn on a picture, each by itself; what is asked for a caption is left out."""
        return [
            (c.picture, ("" if self.captions else question, answer))
            for c in taught.conversations
            if c.picture is not None
            for question, answer in c.turns
        ]

    def _lengths(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        return [len(one.ids) for turn in turns for one in self.kept.encode([turn], check=False)]

    def build(self, taught: InstructionSet) -> TrainedDecoder:
        self.kept = self._pretrained()
        turns = [turn for _, turn in self._pairs(taught)]
        self.kept.extend_vocabulary([text for turn in turns for text in turn], seed=self.seed)
        fitting = [length for length in self._lengths(turns) if length <= MAX_LENGTH]
        if not fitting:
            raise UserError(
                f"{taught.name}: no question on a picture with its answer has {MAX_LENGTH} tokens or fewer; the kept decoder is "
                "taught by such"
            )
        if max(fitting) > self.kept.context_length:
            self.kept.extend_context(max(fitting), seed=self.seed)
        self.kept.requires_grad_(True)
        self.model = TrainedDecoder(self.kept)
        return self.model

    def rows(self, taught: InstructionSet, pictures: Pictures) -> tuple[PairRows, int, list[str]]:
        pairs = self._pairs(taught)
        lengths = self._lengths([turn for _, turn in pairs])
        fitting = [pair for pair, length in zip(pairs, lengths, strict=True) if length <= self.kept.context_length]
        rows = PairRows(fitting, pictures, self.kept)
        unseen = sum(conversation.picture is None for conversation in taught.conversations)
        notes = [f"{unseen:,} conversations without a picture are left out"] if unseen else []
        if long := len(pairs) - len(fitting):
            notes.append(f"{long:,} questions with answers of more than {MAX_LENGTH} tokens are left out")
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
        if shots.num:
            raise UserError(f"shots={shots.num}: the kept decoder reads one picture; leave --shots out, or its route")
        prompts = ["" if self.captions else asked(example) for example in dataset.examples]
        # prompts of as many tokens are answered together
        order = sorted(range(len(prompts)), key=lambda number: len(self.kept.tokenizer.ids(prompts[number])))
        empty = Encoded(np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, np.int64))

        def batch_of(part: list[int]) -> SequenceBatch:
            return text_with_pictures(
                [empty] * len(part),
                [dataset.examples[number].picture for number in part],
                pictures,
                number_B=np.array(part),
                filler_id=self.kept.filler_id,
            )

        def texts_of(batch: SequenceBatch) -> list[str]:
            numbers = batch.number_B.tolist()
            asked_now = [prompts[number] for number in numbers]
            return self.kept.answer(batch.tokens_IND, asked_now, generation, number_B=numbers)

        return self._in_batches(dataset, order, batch_of, texts_of, prompt=lambda number: f"{PICTURE}{prompts[number]}")

    def save(self, folder: Path) -> None:
        self.kept.save(folder)

    def load(self, folder: Path) -> None:
        self.kept = load_tuned_decoder(folder).to(next(self.encoder.parameters()).device)
        self.model = TrainedDecoder(self.kept)
