"""Whole words as new tokens of a trained tokenizer.

A decoder's tokenizer has learned captions, and spells the words of questions letter by letter. An added word is an
abbreviation: one new id that stands for the ids which the tokenizer spells the word with, where they are a whole word. So
decoding gives what it gave before, whatever the tokenizer, and a text without added words is encoded as before.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pretrain.data.tokenizers import CaptionTokenizer, clean_caption, load_tokenizer
from pretrain.export import save_json
from pretrain.types import UserError

_FILE = "added_words.json"
_WORD = re.compile(r"[^\W\d_]+")


class WordTokenizer(CaptionTokenizer):
    """A tokenizer with added words, whose ids follow its own.

    Args:
        base: the tokenizer.
        words: lower-case, each spelt with two ids or more by `base`, the first of them gets the id `base.vocab_size`.
        context_length: most ids of an encoded caption, EOS included; the base's where not given.
    """

    def __init__(self, base: CaptionTokenizer, words: Sequence[str] = (), *, context_length: int | None = None) -> None:
        self.base, self.words = base, tuple(words)
        self.name, self.eos_id, self.pad_id = base.name, base.eos_id, base.pad_id
        self.vocab_size = base.vocab_size + len(self.words)
        self.context_length = base.context_length if context_length is None else context_length
        self._special_ids = base._special_ids
        self._spelling = {base.vocab_size + k: tuple(self._spell(word)) for k, word in enumerate(self.words)}
        # the longest first: "inside" before "in"
        self._by_first: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        for added_id, spelling in sorted(self._spelling.items(), key=lambda item: -len(item[1])):
            assert len(spelling) > 1, "an added word has two ids or more"
            self._by_first.setdefault(spelling[0], []).append((spelling, added_id))
        self._goes_on: dict[tuple[int, int], bool] = {}

    def ids(self, text: str) -> list[int]:
        """All ids of a text, without EOS and however many they are."""
        return self._encode(clean_caption(text))

    def words_to_add(self, texts: Iterable[str], *, min_share: float) -> list[str]:
        """Words that take two ids or more, the frequent ones first.

        Rare ones are left spelt: there is too little to learn a token of its own from, and written strings, which a model has to
        read letter by letter, are among them.

        Args:
            texts: to find words in.
            min_share: least number of a word over the number of texts; seen once is never enough.
        """
        num_texts, counts = 0, Counter[str]()
        for text in texts:
            num_texts += 1
            counts.update(_WORD.findall(clean_caption(text)))
        least = max(2.0, min_share * num_texts)
        frequent = sorted((-count, word) for word, count in counts.items() if count >= least)
        return [word for _, word in frequent if len(self._encode(word)) > 1]

    def _spell(self, text: str) -> list[int]:
        return [i for i in self.base._encode(text) if i not in self._special_ids]

    def _encode(self, text: str) -> list[int]:
        spelt, merged, at = self._spell(text), [], 0
        while at < len(spelt):
            for spelling, added_id in self._by_first.get(spelt[at], ()):
                end = at + len(spelling)
                if tuple(spelt[at:end]) == spelling and not (
                    end < len(spelt) and self._is_inside(added_id, spelt[end])
                ):
                    merged.append(added_id)
                    at = end
                    break
            else:
                merged.append(spelt[at])
                at += 1
        return merged

    def _is_inside(self, added_id: int, next_id: int) -> bool:
        """Whether a word goes on with the id behind it: "is" in "isle"."""
        pair = (added_id, next_id)
        if pair not in self._goes_on:
            text, word = self._decode([added_id, next_id]).strip(), self.words[added_id - self.base.vocab_size]
            self._goes_on[pair] = text.startswith(word) and _WORD.match(text, len(word)) is not None
        return self._goes_on[pair]

    def _decode(self, ids: list[int]) -> str:
        return self.base._decode([i for one in ids for i in self._spelling.get(one, (one,))])

    def save(self, folder: str | Path) -> None:
        """Write the base's files and the added words beside them, for :func:`load_word_tokenizer`."""
        self.base.save(folder)
        save_json({"words": list(self.words), "context_length": self.context_length}, Path(folder) / _FILE)

    def _save(self, folder: Path) -> None:
        raise NotImplementedError  # `save` does it


def load_word_tokenizer(folder: str | Path) -> WordTokenizer:
    """The tokenizer that was saved in `folder`.

    Raises:
        UserError: the folder holds none, or a damaged one.
    """
    path = Path(folder) / _FILE
    try:
        about = json.loads(path.read_text())
        words, context_length = about["words"], about["context_length"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{path} is not what added words were saved as ({reason})") from error
    return WordTokenizer(load_tokenizer(folder), words, context_length=context_length)
