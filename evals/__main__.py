"""`python -m evals COMMAND ...`: see `python -m evals --help`."""

import sys
from importlib import import_module

#: Command -> the module whose `main(args)` runs it and returns the exit status, and one line of help. Imported on use.
COMMANDS = {
    "imagenet": ("evals.imagenet", "attentive and linear probe, k-NN and few-shot classification of frozen features"),
    "finetune": ("evals.finetune", "train the whole encoder on a classification data set"),
    "refcoco": ("evals.refcoco", "find what a sentence refers to: a light head on frozen tokens, or Grounding DINO"),
    "zeroshot": ("evals.zeroshot", "zero-shot classification and image-text retrieval"),
    "look": ("evals.look", "pictures of an encoder's features"),
    "coco": ("evals.coco", "train a detector on an encoder, score boxes and masks"),
    "vqa": ("evals.vqa", "questions about pictures: a connector into a language model, or the kept decoder"),
    "caption": ("evals.caption", "captions of pictures: the kept decoder, or a connector into a language model"),
    "scenes": ("evals.scenes", "a plain probe and the names in captions, on generated scenes"),
}


def main(args: list[str] | None = None) -> int:
    args = sys.argv[1:] if args is None else args
    if args and args[0] in COMMANDS:
        return import_module(COMMANDS[args[0]][0]).main(args[1:])
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    usage = "\n".join(["usage: python -m evals COMMAND [--help] ...", *lines])
    if args and args[0] in ("-h", "--help"):
        print(usage)
        return 0
    known = ", ".join(COMMANDS)
    print(f"error: {args[0]!r} is no command: give one of {known}" if args else usage, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
