"""Causal language models: any of Hugging Face's by name or folder, or a small Llama made from nothing.

The published comparison takes Llama-3.0 8B (reference, section 7, Table 7). The small one is what a machine without a hub can
have: it knows no language but that of the conversations it is trained on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from evals.multimodal.templates import TEMPLATES, Template, find_template
from pretrain.data.storage import digest
from pretrain.data.tokenizers import train_bpe
from pretrain.models.sizes import swiglu_hidden_dim
from pretrain.types import UserError

_EOS = "<eos>"
_LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
#: Of each end of a model's file that tell it from others.
_END_BYTES = 2**20


@dataclass(frozen=True)
class SmallConfig:
    """A Llama-type model from nothing. Sizes are ours, for minutes on a CPU; with two blocks it learned no lettered choices.

    Attributes:
        embed_dim: width.
        depth: blocks.
        num_heads: attention heads.
        mlp_hidden_dim: hidden width of SwiGLU; 8/3 of the width, rounded up, where not given.
        vocab_size: most ids of its BPE, which is trained on the conversations.
        context_length: most tokens, those of pictures included.
    """

    embed_dim: int = 128
    depth: int = 3
    num_heads: int = 4
    mlp_hidden_dim: int | None = None
    vocab_size: int = 512
    context_length: int = 2048

    def check(self) -> None:
        """Raise UserError for sizes that cannot be meant."""
        for name in ("embed_dim", "depth", "num_heads", "context_length"):
            if getattr(self, name) < 1:
                raise UserError(f"lm.small.{name}={getattr(self, name)} must be at least 1")
        if self.embed_dim % (2 * self.num_heads):
            raise UserError(
                f"lm.small.embed_dim={self.embed_dim} must be a multiple of twice lm.small.num_heads={self.num_heads}"
            )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on all linear layers of the blocks (Hu et al. 2021), through peft; the model's own weights stay.

    Attributes:
        rank: of the adapters.
        alpha: their scale is alpha / rank.
        dropout: in front of them.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0

    def check(self) -> None:
        """Raise UserError for numbers that cannot be meant."""
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise UserError(f"lm.lora={self}: rank must be at least 1, alpha above 0, dropout from 0 to below 1")


@dataclass(frozen=True)
class LanguageConfig:
    """Which language model answers, and what of it is trained.

    Attributes:
        name: "small", or a name on Hugging Face's hub, or a folder.
        small: sizes of "small".
        template: how conversations are written: "auto", "chat" (the tokenizer's own), "plain" or "vicuna_v1"; "small" is "plain".
        frozen: whether its weights stay as they are (the connector alone learns).
        lora: adapters instead of its own weights; None trains all.
        dtype: of the weights as they are loaded; mixed precision is the training's.
    """

    name: str = "small"
    small: SmallConfig = field(default_factory=SmallConfig)
    template: str = "auto"
    frozen: bool = False
    lora: LoraConfig | None = None
    dtype: str = "float32"

    def check(self) -> None:
        """Raise UserError for what cannot be meant."""
        self.small.check()
        if self.lora is not None:
            self.lora.check()
            if self.frozen:
                raise UserError("lm.frozen=true leaves nothing for lm.lora to train; leave one of them out")
        if self.name == "small" and (self.frozen or self.lora is not None):
            raise UserError(
                "lm.name=small starts from nothing: all of it must be trained (lm.frozen=false, no lm.lora)"
            )
        known = ("auto", "plain") if self.name == "small" else ("auto", "chat", *TEMPLATES)
        if self.template not in known:
            raise UserError(
                f"lm.template={self.template!r}: with lm.name={self.name} it must be one of {', '.join(known)}"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"lm.dtype={self.dtype!r} is unknown; give float32 or bfloat16")
        if self.dtype == "bfloat16" and not self.frozen and self.lora is None:
            raise UserError(
                "lm.dtype=bfloat16: weights that are trained would lose small updates; give float32 (train.precision=bf16 is the "
                "arithmetic's), or lm.frozen=true, or lm.lora"
            )


class Language:
    """A causal language model with its tokenizer, and the ids of the fixed text around questions.

    Attributes:
        model: transformers', on the CPU, in training mode or not as it is used.
        tokenizer: transformers'.
        template: of conversations.
        width: of its token embeddings.
        context_length: most tokens it takes; None where it sets no limit.
        eos_ids: any of them ends an answer.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, template: Template, name: str) -> None:
        self.model, self.tokenizer, self.template, self.name = model, tokenizer, template, name
        self.width = model.get_input_embeddings().weight.shape[1]
        self.context_length: int | None = getattr(model.config, "max_position_embeddings", None)
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"lm.name={name!r}: its tokenizer has no EOS token, which has to end an answer; choose another model"
            )
        self.ids = lru_cache(maxsize=200_000)(self._ids)
        bos = tokenizer.bos_token_id
        self.opening = ([] if bos is None else [bos]) + list(self.ids(template.opening))
        self.after_picture = list(self.ids(template.after_picture))
        self.to_answer, self.next_turn = list(self.ids(template.to_answer)), list(self.ids(template.next_turn))
        self.end = [tokenizer.eos_token_id] if template.end is None else list(self.ids(template.end))
        own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        listed = own if isinstance(own, list) else [] if own is None else [own]
        self.eos_ids = sorted({tokenizer.eos_token_id, self.end[-1], *listed})
        # what a model's makers would sample with (penalties, top_p) is not what a row of results says
        model.generation_config = GenerationConfig(eos_token_id=self.eos_ids)

    @property
    def filler_id(self) -> int:
        """Stands where a batch has no token. A tokenizer without padding is no fault: what is valid is known from lengths."""
        return self.tokenizer.eos_token_id

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()

    def question(self, text: str) -> list[int]:
        """Ids of what is asked; none for an empty question."""
        return list(self.ids(self.template.question.format(text))) if text else []

    def answer(self, text: str) -> list[int]:
        """Ids of what is answered, closed."""
        return [*self.ids(self.template.answer.format(text)), *self.end]

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the first closing token, without special tokens."""
        ids = [int(i) for i in ids]
        cut = next((k for k, token in enumerate(ids) if token in self.eos_ids), len(ids))
        return self.tokenizer.decode(ids[:cut], skip_special_tokens=True).strip()


def build_small(config: SmallConfig, texts: Iterable[str], *, seed: int) -> Language:
    """A small Llama with random weights, and a BPE of the texts.

    Args:
        config: its sizes.
        texts: questions and answers as they will be written, without the template.
        seed: of the weights.
    """
    config.check()
    bpe = train_bpe((f" {text}" for text in texts), vocab_size=config.vocab_size, special=[_EOS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=_EOS)
    sizes = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.embed_dim,
        intermediate_size=config.mlp_hidden_dim or swiglu_hidden_dim(config.embed_dim),
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        max_position_embeddings=config.context_length,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = LlamaForCausalLM(sizes)
    return Language(model, tokenizer, template=find_template("plain", tokenizer), name="small")


def load_language(config: LanguageConfig) -> Language:
    """A causal language model by its hub's name or folder; it is looked up in the local cache first.

    Raises:
        UserError: it cannot be loaded, is no causal language model, or has no EOS token.
    """
    name = config.name
    folder = Path(name).expanduser()
    if not folder.is_dir() and (folder.is_absolute() or name[0] in ".~" or name.count("/") > 1):
        raise UserError(f"lm.name: the folder {name!r} does not exist; give a folder, a name on the hub, or small")
    dtype = getattr(torch, config.dtype)
    try:
        model, tokenizer = _load(str(folder) if folder.is_dir() else name, dtype, local=True)
    except _LOADING_ERRORS as error:
        if folder.is_dir():
            raise _unusable(name, error) from error
        try:
            model, tokenizer = _load(name, dtype, local=False)
        except _LOADING_ERRORS as second:
            raise _unusable(name, second) from second
    _check_causal(model, name)
    return Language(model, tokenizer, template=find_template(config.template, tokenizer), name=name)


@torch.no_grad()
def _check_causal(model: nn.Module, name: str) -> None:
    """A model that sees later tokens would read its targets: BERT's types load as causal ones too."""
    first, second = (model(torch.tensor([[1, 2, 3, last]])).logits[0, :3] for last in (4, 5))
    if not torch.equal(first, second):
        raise UserError(
            f"lm.name={name!r} is no causal language model: a later token changes what is said of earlier ones"
        )


def _load(name: str, dtype: torch.dtype, *, local: bool) -> tuple[nn.Module, Any]:
    tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
    return AutoModelForCausalLM.from_pretrained(name, dtype=dtype, local_files_only=local), tokenizer


def _unusable(name: str, error: Exception) -> UserError:
    reason = f"{' '.join(str(error).split())!r:.200}"
    return UserError(
        f"lm.name={name!r} does not load as a causal language model with its tokenizer; give a folder of transformers', a name "
        f"on the hub (which must be in reach), or small ({reason})"
    )


def with_adapters(language: Language, config: LoraConfig, *, seed: int) -> nn.Module:
    """The model with fresh adapters on the linear layers of its blocks; only they learn."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    config.check()
    peft = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return get_peft_model(language.model, peft)


def language_settings(config: LanguageConfig) -> dict[str, Any]:
    """What of a config decides the model, as plain data; sizes of "small" do not count where it is not used.

    Of a folder its files count as well: their names, sizes and ends, so that another model in its place is another model.
    """
    plain = asdict(config)
    if config.name == "small":
        return plain
    folder = Path(config.name).expanduser()
    files = [_file_identity(path) for path in sorted(folder.iterdir()) if path.is_file()] if folder.is_dir() else []
    return {key: value for key, value in plain.items() if key != "small"} | {"files": files}


def _file_identity(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(_END_BYTES)
        file.seek(max(0, size - _END_BYTES))
        return f"{path.name} {size} {digest(first, file.read(_END_BYTES))}"
