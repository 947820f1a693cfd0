"""`python -m pretrain fit --config configs/pretrain/aimv2_nano_scenes.yaml`."""

import sys

from pretrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
