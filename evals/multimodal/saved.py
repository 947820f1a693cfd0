"""A trained connector model as a folder: connector.safetensors, lm/ (whole, adapters, or absent where it is frozen), lm.json."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

from evals.multimodal.connector import ConnectorModel
from evals.multimodal.language import Language, LanguageConfig, load_language
from evals.multimodal.templates import Template
from pretrain.export import save_json, save_tensors
from pretrain.types import UserError


def save_connector(model: ConnectorModel, config: LanguageConfig, folder: Path) -> None:
    """Write all that `load_connector` needs; what a language model's folder or the hub has is not written again."""
    folder.mkdir(parents=True, exist_ok=True)
    if model.connector is not None:
        save_tensors(model.connector.state_dict(), folder / "connector.safetensors")
    if not config.frozen:
        disable_progress_bar()  # of transformers: this suite shows its own
        model.lm.save_pretrained(folder / "lm")  # of peft: the adapters
        model.language.tokenizer.save_pretrained(folder / "lm")
    about = {"lm": asdict(config), "template": asdict(model.language.template), "sees": model.connector is not None}
    save_json(about, folder / "lm.json")  # last: a folder with it is whole


def load_connector(folder: Path, config: LanguageConfig, *, token_dim: int | None) -> ConnectorModel:
    """The model that was saved, in evaluation mode on the CPU.

    Args:
        folder: of `save_connector`.
        config: as it was trained with.
        token_dim: width of the encoder's tokens; None for a model that sees no picture.

    Raises:
        UserError: nothing there, or not what it says it is.
    """
    try:
        about = json.loads((folder / "lm.json").read_text())
        template = Template(**about["template"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no trained model: {' '.join(str(error).split())}") from error
    whole = config.lora is None and not config.frozen
    base = load_language(
        LanguageConfig(name=str(folder / "lm"), template="plain", dtype=config.dtype) if whole else config
    )
    language = Language(base.model, base.tokenizer, template=template, name=config.name)
    lm = language.model
    if config.lora is not None:
        from peft import PeftModel

        lm = PeftModel.from_pretrained(lm, str(folder / "lm"))
    model = ConnectorModel(language, token_dim=token_dim, model=lm)
    if model.connector is not None:
        model.connector.load_state_dict(load_file(folder / "connector.safetensors"), strict=True)
    return model.eval().requires_grad_(False)
