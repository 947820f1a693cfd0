"""Arguments that the commands have in common."""

from pathlib import Path

from jsonargparse import ArgumentParser

from evals.results import RESULTS


def encoder_arguments(parser: ArgumentParser) -> None:
    """--config, --encoder and --seed."""
    parser.add_argument("--config", action="config", help="YAML with any of these values")
    parser.add_argument(
        "--encoder",
        action="append",
        type=str,
        help="SPEC, or LABEL=SPEC,SPEC,... for several seeds of one kind; repeatable",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first encoder of a group; the others count up from it"
    )


def data_arguments(parser: ArgumentParser, *, default: str, published: str) -> None:
    """--dataset, --data and --allow_sizes: of one data set.

    Args:
        parser: to add them to.
        default: the data set where nothing is named.
        published: the one that a place alone means.
    """
    parser.add_argument("--dataset", type=str | None, default=None, help=f"name or file; {default} if none is named")
    place_arguments(parser, published=published)


def place_arguments(parser: ArgumentParser, *, published: str) -> None:
    """--data and --allow_sizes."""
    parser.add_argument("--data", type=str | None, default=None, help=f"where it lies; {published} if none is named")
    parser.add_argument(
        "--allow_sizes",
        type=bool | None,
        default=None,
        help="take splits of other sizes than the published ones, and call them partial; yes where --data is given",
    )


def output_arguments(parser: ArgumentParser) -> None:
    """--out and --results."""
    parser.add_argument("--out", type=Path, default=Path("runs/evals"))
    parser.add_argument("--results", type=Path, default=RESULTS)
