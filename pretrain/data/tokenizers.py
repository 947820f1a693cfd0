"""Captions to token ids and back: CLIP's tokenizer, any of Hugging Face's, a small BPE of the run's own captions.

Ids never tell what is valid: SigLIP's tokenizer has pad = EOS = 1, and CLIP's padding, 0, is its "!". Padding is
known from lengths alone, and travels as `text_valid_BL`. Shape letters: B batch, L text length.
"""

import html
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ftfy
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from pretrain.types import CONTEXT_LENGTH, UserError

_MARKER = "caption_tokenizer.json"
_BPE_FILE = "tokenizer.json"


def clean_caption(text: str) -> str:
    """Repair the encoding, undo HTML escapes, collapse white space, lower-case (as CLIP and open_clip do)."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


class CaptionTokenizer(ABC):
    """Encodes captions without BOS (the decoder's is a learned vector), closed by EOS.

    Attributes:
        name: what `build_tokenizer` was given.
        vocab_size: number of ids; every id is below it.
        eos_id: closes each caption, and appears nowhere else in it.
        pad_id: fills a batch; it may be equal to `eos_id` or to an ordinary token.
        context_length: most ids in a caption, EOS included.
    """

    name: str
    vocab_size: int
    eos_id: int
    pad_id: int
    context_length: int = CONTEXT_LENGTH
    #: ids that no caption's text may produce and that are no part of a decoded text
    _special_ids: frozenset[int]

    def encode(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of each caption, cleaned, cut at `context_length` with EOS kept; a blank one is [EOS]."""
        encoded = []
        for caption in captions:
            # "</s>" or "<end_of_text>" written in a caption would otherwise end it there
            ids = [i for i in self._encode(clean_caption(caption)) if i not in self._special_ids]
            encoded.append([*ids[: self.context_length - 1], self.eos_id])
        return encoded

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Text up to the first EOS, without special tokens."""
        ids = [int(i) for i in ids]
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        return self._decode([i for i in ids if i not in self._special_ids]).strip()

    def save(self, folder: str | Path) -> None:
        """Write all that :func:`load_tokenizer` needs to make this tokenizer again without network."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._save(folder)
        # Last, so that a folder with this file is complete.
        marker = {"kind": _KINDS[type(self)], "name": self.name, "vocab_size": self.vocab_size}
        (folder / _MARKER).write_text(json.dumps(marker, indent=2) + "\n")

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of a cleaned caption, without BOS and EOS."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    @abstractmethod
    def _save(self, folder: Path) -> None: ...


class ClipTokenizer(CaptionTokenizer):
    """CLIP's, from the vocabulary that open_clip ships: 49,408 ids, EOS 49,407, padded with 0 as open_clip does."""

    def __init__(self) -> None:
        from open_clip.tokenizer import SimpleTokenizer  # takes seconds, and most runs do not need it

        self._tokenizer = SimpleTokenizer()
        self.name = "clip"
        self.vocab_size = self._tokenizer.vocab_size
        self.eos_id = self._tokenizer.eot_token_id
        self.pad_id = 0
        self._special_ids = frozenset(self._tokenizer.all_special_ids)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)

    def _save(self, folder: Path) -> None:
        pass  # open_clip has the vocabulary


class HuggingFaceTokenizer(CaptionTokenizer):
    """Any tokenizer that transformers' AutoTokenizer loads; `google/siglip-base-patch16-224` for the published recipe.

    Args:
        name_or_folder: a name on the hub (looked up in the local cache where there is no network) or a folder.

    Raises:
        UserError: it cannot be loaded, or has no EOS token.
    """

    def __init__(self, name_or_folder: str | Path) -> None:
        from transformers import AutoTokenizer  # takes seconds, and most runs do not need it

        self.name = str(name_or_folder)
        folder = Path(name_or_folder).expanduser()
        if not folder.is_dir() and (folder.is_absolute() or self.name[0] in ".~" or self.name.count("/") > 1):
            raise UserError(f"tokenizer: the folder {self.name!r} does not exist")
        try:
            self._tokenizer = self._find(AutoTokenizer, folder)
        except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
            reason = f"{' '.join(str(error).split())!r:.200}"
            if folder.is_dir():
                wanted = (
                    "does not load as a Hugging Face tokenizer; it should hold a tokenizer.json and its configuration"
                )
                raise UserError(f"tokenizer: the folder {self.name!r} {wanted} ({reason})") from error
            wanted = "nor in the local cache, and the Hugging Face hub could not be reached or does not have it"
            choices = "give a folder with the tokenizer's files, 'bpe' or 'clip'"
            raise UserError(f"tokenizer: {self.name!r} is neither a folder {wanted}; {choices} ({reason})") from error
        eos, pad = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
        if eos is None:
            raise UserError(
                f"tokenizer: {self.name!r} has no EOS token, which has to close each caption; choose another"
            )
        self.eos_id = eos
        self.pad_id = eos if pad is None else pad
        self.vocab_size = max(len(self._tokenizer), max(self._tokenizer.get_vocab().values()) + 1)
        # An unknown word is part of its caption, unless it is encoded as EOS or padding are.
        special = set(self._tokenizer.all_special_ids) - {self._tokenizer.unk_token_id}
        self._special_ids = frozenset(special | {self.eos_id, self.pad_id})

    def _find(self, auto_tokenizer: Any, folder: Path) -> Any:
        if folder.is_dir():
            return auto_tokenizer.from_pretrained(str(folder), local_files_only=True)
        try:  # the cache first: without network, the hub is given up only after many retries
            return auto_tokenizer.from_pretrained(self.name, local_files_only=True)
        except (OSError, ValueError):
            return auto_tokenizer.from_pretrained(self.name)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False, verbose=False)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _save(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)


#: Words, single digits and runs of other characters, each with the space before it.
_PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+"


def train_bpe(texts: Iterable[str], *, vocab_size: int, special: Sequence[str]) -> Tokenizer:
    """A byte-level BPE of the texts as they are: no text is unknown to it; a number is spelt digit by digit.

    Args:
        texts: to learn from.
        vocab_size: most ids; fewer where the texts hold too few pairs.
        special: tokens that get the first ids.

    Raises:
        UserError: `vocab_size` is below the 256 bytes and the special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(special) + len(alphabet):
        raise UserError(
            f"vocab_size: {vocab_size} is too small; a BPE over bytes needs at least {len(special) + len(alphabet)}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(special),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Training used threads, so that `tokenizers` would warn in every forked DataLoader worker; encoding uses none.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return tokenizer


class BpeTokenizer(CaptionTokenizer):
    """A byte-level BPE: no text is unknown to it; a number is spelt digit by digit."""

    _PAD, _EOS = "<pad>", "<eos>"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.name = "bpe"
        self.vocab_size = tokenizer.get_vocab_size()
        self.pad_id, self.eos_id = tokenizer.token_to_id(self._PAD), tokenizer.token_to_id(self._EOS)
        self._special_ids = frozenset({self.pad_id, self.eos_id})

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> "BpeTokenizer":
        """Learn at most `vocab_size` ids (fewer where the captions hold too few pairs) from captions as written.

        Raises:
            UserError: `vocab_size` is below the 256 bytes and 2 special tokens.
        """
        cleaned = (f" {clean_caption(caption)}" for caption in captions)
        return cls(train_bpe(cleaned, vocab_size=vocab_size, special=[cls._PAD, cls._EOS]))

    def _encode(self, text: str) -> list[int]:
        # A space in front, so that a word is the same token at the start as elsewhere
        return self._tokenizer.encode(f" {text}", add_special_tokens=False).ids if text else []

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)

    def _save(self, folder: Path) -> None:
        self._tokenizer.save(str(folder / _BPE_FILE))


_KINDS: dict[type[CaptionTokenizer], str] = {
    BpeTokenizer: "bpe",
    ClipTokenizer: "clip",
    HuggingFaceTokenizer: "hugging_face",
}


def build_tokenizer(name: str, captions: Callable[[], Iterable[str]], vocab_size: int) -> CaptionTokenizer:
    """The tokenizer `name` for a new run.

    Args:
        name: "bpe", "clip", or a Hugging Face name or folder.
        captions: called for the captions to train on, with "bpe" only.
        vocab_size: most ids, with "bpe" only.

    Raises:
        UserError: the tokenizer cannot be loaded or trained.
    """
    if not name:
        raise UserError("tokenizer: '' names none; give 'bpe', 'clip', or a Hugging Face name or folder")
    if name == "bpe":
        return BpeTokenizer.train(captions(), vocab_size)
    return ClipTokenizer() if name == "clip" else HuggingFaceTokenizer(name)


def load_tokenizer(folder: str | Path) -> CaptionTokenizer:
    """The tokenizer that was saved in `folder`; needs no network.

    Raises:
        UserError: the folder holds none, or a damaged one.
    """
    folder = Path(folder)
    path = folder / _MARKER
    try:
        marker: dict[str, Any] = json.loads(path.read_text())
        kind, name, vocab_size = marker["kind"], marker["name"], marker["vocab_size"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"tokenizer: {str(path)!r} is not what a tokenizer was saved as ({reason})") from error
    if kind not in _KINDS.values():
        raise UserError(f"tokenizer: {str(path)!r} is of the kind {kind!r}; known are {', '.join(_KINDS.values())}")
    tokenizer = _load_kind(kind, folder)
    tokenizer.name = name
    if tokenizer.vocab_size != vocab_size:
        raise UserError(f"tokenizer: {str(folder)!r} has {tokenizer.vocab_size} ids, but was saved with {vocab_size}")
    return tokenizer


def _load_kind(kind: str, folder: Path) -> CaptionTokenizer:
    if kind == "clip":
        return ClipTokenizer()
    if kind == "hugging_face":
        return HuggingFaceTokenizer(folder)
    path = folder / _BPE_FILE
    if not path.is_file():
        raise UserError(f"tokenizer: {str(path)!r} does not exist; it was saved beside {_MARKER}")
    try:
        return BpeTokenizer(Tokenizer.from_file(str(path)))
    except Exception as error:  # tokenizers raises nothing more specific
        raise UserError(f"tokenizer: {str(path)!r} is damaged ({' '.join(str(error).split())!r:.200})") from error


def collate_captions(
    ids: Sequence[Sequence[int]], pad_id: int, *, multiple: int = 8, context_length: int = CONTEXT_LENGTH
) -> tuple[Tensor, Tensor]:
    """Pad captions to the longest, rounded up to a multiple, so that a batch of short ones costs little.

    Args:
        ids: of each sample, as `CaptionTokenizer.encode` gives them; [] for a picture without a caption.
        pad_id: written behind each caption.
        multiple: L is rounded up to a multiple of this, at least one of it.
        context_length: L is never beyond this.

    Returns:
        text_BL int64, and text_valid_BL bool: True on each caption with its EOS.

    Raises:
        ValueError: a caption is longer than `context_length`.
    """
    longest = max(map(len, ids), default=0)
    if longest > context_length:
        raise ValueError(f"collate_captions: a caption has {longest} ids, context_length is {context_length}")
    length = min(max(-(-longest // multiple), 1) * multiple, context_length)
    text_BL = torch.full((len(ids), length), pad_id, dtype=torch.int64)
    for row, caption in zip(text_BL, ids):
        row[: len(caption)] = torch.tensor(caption, dtype=torch.int64)
    lengths_B = torch.tensor([len(caption) for caption in ids], dtype=torch.int64)
    return text_BL, torch.arange(length) < lengths_B[:, None]
