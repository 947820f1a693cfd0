"""`hf:DIR`: a folder of Hugging Face's with CLIP, SigLIP, DINOv2 (with registers) or AIMv2, whole or the vision side alone.

Shape letters: B batch, C channels, H/W pixels, P class and register tokens, N patches, D width, E width of the summary,
T texts.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from evals.encoder import Features, Provenance, TextTower, TokenEncoder
from evals.encoders.preprocessing import from_preprocessor
from evals.encoders.specs import listed, one_line, read_object
from evals.transforms import ImageTransform
from pretrain.models.weights import find_weights, read_tensors
from pretrain.types import CLIP_MEAN, CLIP_STD, ImageSpec, UserError

_log = logging.getLogger(__name__)
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Family:
    """How one `model_type` is read.

    Attributes:
        model: class of transformers.
        objective: what models of it are trained with.
        num_prefix: class tokens in front of the patches; registers come on top.
        interpolates: "asked" where positions are resampled on request, "always" where by itself, "never" where not.
        statistics: mean and deviation, where the folder has no preprocessor_config.json; the size is the config's, short
            side and centre crop ("crop") or squashed.
        mode: of the default transform.
    """

    model: str
    objective: str
    num_prefix: int
    interpolates: str
    statistics: tuple[tuple[float, float, float], tuple[float, float, float]]
    mode: Any = "crop"


_CLIP = ("clip", 1, "asked", (CLIP_MEAN, CLIP_STD))
_SIGLIP = ("siglip", 0, "asked", _HALF, "squash")
_AIMV2 = ("aimv2", 0, "never", (CLIP_MEAN, CLIP_STD))


FAMILIES = {
    "clip": Family("CLIPModel", *_CLIP),
    "clip_vision_model": Family("CLIPVisionModel", *_CLIP),
    "siglip": Family("SiglipModel", *_SIGLIP),
    "siglip_vision_model": Family("SiglipVisionModel", *_SIGLIP),
    "dinov2": Family("Dinov2Model", "dinov2", 1, "always", _IMAGENET),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", "dinov2", 1, "always", _IMAGENET),
    "aimv2": Family("Aimv2Model", *_AIMV2),
    "aimv2_vision_model": Family("Aimv2VisionModel", *_AIMV2),
}


class HuggingFaceText(TextTower):
    """The text side of CLIP, SigLIP or AIMv2.

    Args:
        model: the model; its vision side is taken out of it.
        tokenizer: of the same folder.
        pads_fully: SigLIP is trained, and pools, on texts padded to their full length without a mask.
    """

    def __init__(self, model: nn.Module, *, tokenizer: Any, pads_fully: bool) -> None:
        super().__init__()
        self.model, self.tokenizer, self.pads_fully = model, tokenizer, pads_fully

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        inputs = self.tokenizer(
            list(texts),
            padding="max_length" if self.pads_fully else True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(next(self.parameters()).device)
        mask = {} if self.pads_fully else {"attention_mask": inputs["attention_mask"]}
        return self.model.get_text_features(input_ids=inputs["input_ids"], **mask).pooler_output


class HuggingFaceEncoder(TokenEncoder):
    """The vision side of a model of transformers.

    Tokens stand behind the last norm. CLIP's `last_hidden_state` does not: its norm, which only its class token passes
    there, is put on all tokens, as open_clip and timm do with the same weights.
    """

    def __init__(
        self,
        vision: nn.Module,
        *,
        projection: nn.Module | None,
        family: Family,
        text: TextTower | None,
        transform: ImageTransform,
        provenance: Provenance,
    ) -> None:
        super().__init__()
        self.vision, self.projection, self.family = vision, projection, family
        self.text, self.transform, self.provenance = text, transform, provenance
        config = vision.config
        self.embed_dim, self._own_size, self._patch_size = config.hidden_size, config.image_size, config.patch_size
        self._any_size = family.interpolates != "never" or getattr(config, "is_native", False)
        self._num_prefix = family.num_prefix + getattr(config, "num_register_tokens", 0)
        self.eval().requires_grad_(False)

    def forward(self, image_BCHW: Tensor) -> Features:
        height, width = image_BCHW.shape[-2:]
        self.grid(height, width)
        resample = self.family.interpolates == "asked" and (height, width) != (self._own_size, self._own_size)
        output = self.vision(image_BCHW, **({"interpolate_pos_encoding": True} if resample else {}))
        hidden_BTD, pooled = output.last_hidden_state, output.pooler_output
        if self.family.objective == "clip":
            hidden_BTD = self.vision.post_layernorm(hidden_BTD)
        if pooled is not None and self.projection is not None:
            pooled = self.projection(pooled)
        return Features(hidden_BTD[:, self._num_prefix :], hidden_BTD[:, : self._num_prefix], pooled)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        architecture = self.provenance.architecture
        if not self._any_size and (height, width) != (self._own_size, self._own_size):
            raise UserError(
                f"{architecture} takes pictures of {self._own_size} pixels only, these are {height} x {width}; the same "
                "weights through timm:NAME@FILE take others"
            )
        if min(height, width) < self._patch_size:
            raise UserError(
                f"{architecture}: pictures of {height} x {width} are smaller than its patch, {self._patch_size}"
            )
        return height // self._patch_size, width // self._patch_size


def load_huggingface(text: str, *, whole: str, untrained: bool) -> HuggingFaceEncoder:
    """The encoder behind `hf:`.

    Args:
        text: a local folder with config.json and weights; preprocessor_config.json and a tokenizer's files are used where
            they are there.
        whole: the spec, for messages.
        untrained: draw the weights, read the configuration only.

    Raises:
        UserError: no such folder, another family, tensors missing, left over or of another shape.
    """
    folder = Path(text)
    about = read_object(folder / "config.json")
    if not about:
        raise UserError(f"encoder {whole!r}: {text!r} is no folder with a config.json; hf: takes local folders only")
    kind = about.get("model_type")
    if kind not in FAMILIES:
        raise UserError(
            f"encoder {whole!r}: model_type {kind!r} is of none of the families CLIP, SigLIP, DINOv2 and AIMv2 "
            f"({', '.join(FAMILIES)})"
        )
    family = FAMILIES[kind]
    model = _build(folder, family, about, whole=whole, untrained=untrained)
    vision = getattr(model, "vision_model", model)
    projection = getattr(model, "visual_projection", None)
    tower = None
    if hasattr(model, "text_model") and any((folder / name).is_file() for name in _TOKENIZER_FILES):
        tokenizer = _tokenizer(folder)
        if kind == "aimv2":  # its fused attention is causal only in batches with padding; this one always is
            model.set_attn_implementation({"text_config": "eager"})
        for name in ("vision_model", "visual_projection"):
            if hasattr(model, name):
                delattr(model, name)
        tower = HuggingFaceText(model, tokenizer=tokenizer, pads_fully=family.objective == "siglip")
    size = vision.config.image_size
    transform = from_preprocessor(folder) or ImageTransform(ImageSpec(size, *family.statistics), mode=family.mode)
    provenance = Provenance(
        whole,
        _architecture(kind, vision.config),
        "random" if untrained else family.objective,
        run="" if untrained else str(folder),
    )
    return HuggingFaceEncoder(
        vision, projection=projection, family=family, text=tower, transform=transform, provenance=provenance
    )


def _architecture(kind: str, config: Any) -> str:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size", "hidden_act")
    return f"{kind}[{','.join(f'{name}={getattr(config, name)}' for name in names)}]"


def _build(folder: Path, family: Family, about: dict[str, Any], *, whole: str, untrained: bool) -> nn.Module:
    """The model from its configuration, filled with the folder's tensors; no code of the folder runs."""
    name = family.model
    if name == "CLIPVisionModel" and "CLIPVisionModelWithProjection" in about.get("architectures", []):
        name = "CLIPVisionModelWithProjection"
    kind = getattr(transformers, name)
    try:
        config = kind.config_class.from_dict(about)
        if untrained:
            return kind(config)
        tensors = read_tensors(find_weights(folder))
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UserError(f"encoder {whole!r}: {folder} cannot be read as a {name}: {one_line(error)}") from error
    unexpected = sorted(report["unexpected_keys"])
    if dropped := [key for key in unexpected if key.startswith("classifier.")]:
        _log.warning("%s: the classifier is left out (%s)", whole, ", ".join(dropped))
    for what, keys in (
        ("lacks", report["missing_keys"]),
        ("holds tensors that the model has no place for:", set(unexpected) - set(dropped)),
        ("holds tensors of another shape:", {key[0] for key in report["mismatched_keys"]}),
    ):
        if keys:
            raise UserError(f"encoder {whole!r}: {folder} {what} {listed(sorted(keys))}")
    return model


def _tokenizer(folder: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: its tokenizer cannot be read ({one_line(error)})") from error
