"""The one door to mmdet: operators first, then its modules in its registry."""

import logging
import warnings
from functools import cache

from evals.detection.mmcv_ops import install
from pretrain.types import UserError

#: What mmdet and mmengine say about themselves at import and at each call, and nobody can act on.
_KNOWN_WARNINGS = (
    ".*torch.meshgrid.*",
    ".*XFormers.*",
    ".*Fail to import.*MultiScaleDeformableAttention.*",
    ".*init_cfg without.*",
    ".*DeprecationWarning: .*pkg_resources.*",
    ".*torch.cuda.amp.*",
    ".*is_compiling.*",
    # mmdet's Grounding DINO gives the text's keys no positions of their own: their queries' are taken
    ".*position encoding of key is.*",
    # Lightning's, of frozen parts: an encoder or a text encoder that is not trained
    ".*Found .* module.* in eval mode.*",
)


@cache
def use_mmdet() -> None:
    """Provide mmcv's operators where they are missing, register mmdet's modules and make its registry the default.

    Call it in front of any import of mmdet. A second call does nothing.

    Raises:
        UserError: mmdet or mmcv is not installed, or OpenCV cannot be loaded.
    """
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"OpenCV, which mmdet imports, cannot be loaded ({error}); on a machine without libGL: "
            "pip install --force-reinstall --no-deps opencv-python-headless"
        ) from error
    install()
    try:
        from mmdet.utils import register_all_modules
    except ModuleNotFoundError as error:
        raise UserError(f"detection needs mmdet: {error}; run `make env`") from error
    from mmengine.logging import MMLogger

    register_all_modules(init_default_scope=True)
    # it tells of every weight that is initialised, through the logger that was made last (or makes one), at any later time
    MMLogger.get_current_instance().setLevel(logging.ERROR)
