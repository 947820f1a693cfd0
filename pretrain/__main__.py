"""`python -m pretrain COMMAND ...`; `python -m pretrain fit --config configs/pretrain/aimv2_nano_scenes.yaml` trains."""

import sys
from importlib import import_module

#: Command -> the module whose `main(args)` runs it and returns the exit status, and one line of help. Imported on use:
#: training takes seconds to import, the other commands should not.
COMMANDS = {
    "fit": ("pretrain.cli", "train an encoder"),
    "export": ("pretrain.export_formats", "write a trained encoder for timm, Hugging Face, or in the released layout"),
    "index": ("pretrain.data.index_command", "make or check the indices of WebDataset shards"),
    "shards": ("pretrain.data.shards_command", "write pictures and captions of any source as WebDataset shards"),
    "dedupe": ("pretrain.data.dedupe_command", "write shards without the pictures of evaluation sets"),
    "describe": ("pretrain.describe", "parameters, FLOPs and budget of a config, without data"),
}


def main(args: list[str] | None = None) -> int:
    args = sys.argv[1:] if args is None else args
    if args and args[0] in COMMANDS:
        module = import_module(COMMANDS[args[0]][0])
        return module.main(args if args[0] == "fit" else args[1:])
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    usage = "\n".join(["usage: python -m pretrain COMMAND [--help] ...", *lines])
    if args and args[0] in ("-h", "--help"):
        print(usage)
        return 0
    known = ", ".join(COMMANDS)
    print(f"error: {args[0]!r} is no command: give one of {known}" if args else usage, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
