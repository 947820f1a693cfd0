"""What a model was trained with, where its name says it."""

import re

#: A word of a timm or open_clip name or tag -> the objective. Names that have none of them are "unknown".
OBJECTIVES = {
    "aimv2": "aimv2",
    "siglip": "siglip",
    "siglip2": "siglip",
    "dinov3": "dinov3",
    "dinov2": "dinov2",
    "dino": "dino",
    "mae": "mae",
    "fcmae": "mae",
    "ijepa": "ijepa",
    "clip": "clip",
    "mobileclip": "clip",
    "coca": "coca",
}
_FINE_TUNED = "ft"


def named_objective(name: str) -> str:
    """By the words of a name with its tag, e.g. vit_base_patch14_dinov2.lvd142m; "NAME, fine-tuned" where it says so."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    found = next((objective for word, objective in OBJECTIVES.items() if word in words), "unknown")
    return f"{found}, fine-tuned" if found != "unknown" and _FINE_TUNED in words else found
