"""Files that a folder, a glob, a brace range, a URL or a list of these names."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pretrain.data.remote import check_protocol, glob_remote, has_magic, is_remote
from pretrain.data.storage import one_line
from pretrain.types import UserError


def expand_braces(pattern: str) -> Iterator[str]:
    """`x-{000..012}.tar` and `{a,b}.tar` as a shell expands them: leading zeros are kept, braces side by side multiply.

    Raises:
        UserError: a brace holds neither a range of whole numbers nor a list.
    """
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        yield pattern
        return
    inside = match.group(1)
    if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = map(int, bounds.groups())
        width = max(map(len, bounds.groups())) if any(len(b) > 1 and b[0] == "0" for b in bounds.groups()) else 0
        step = 1 if last >= first else -1
        choices: Iterable[str] = (f"{number:0{width}d}" for number in range(first, last + step, step))
    elif "," in inside:
        choices = inside.split(",")
    else:
        raise UserError(f"urls: {{{inside}}} in {pattern!r} is neither a range such as {{000..012}} nor a list {{a,b}}")
    for choice in choices:
        yield from expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def find_shards(urls: str | Path | Sequence[str | Path], *, suffix: str = ".tar") -> list[str]:
    """Paths of the shards that a folder, a file, a glob, a brace range or a list of these names, in that order.

    Raises:
        UserError: something named does not exist, nothing matches, or a shard is named twice.
    """
    paths: list[str] = []
    for url in [urls] if isinstance(urls, str | Path) else urls:
        paths += _find(os.path.expanduser(str(url)), suffix)
    if not paths:
        raise UserError(
            "urls: no shard is named; give a folder, a glob, a range such as train-{000..012}.tar or a list"
        )
    seen: set[str] = set()
    for path in paths:
        if (real := path if is_remote(path) else os.path.realpath(path)) in seen:
            raise UserError(f"urls: the shard {path!r} is named twice; name each shard once")
        seen.add(real)
    return paths


def _find_remote(url: str) -> list[str]:
    check_protocol(url)
    paths: list[str] = []
    for pattern in expand_braces(url):
        if not has_magic(pattern):
            paths.append(pattern)
            continue
        try:
            found = glob_remote(pattern)
        except OSError as error:
            raise UserError(f"urls: the files of {pattern!r} cannot be listed: {one_line(error)}") from error
        if not found:
            raise UserError(f"urls: {pattern!r} matches no file")
        paths += found
    return paths


def _find(url: str, suffix: str) -> list[str]:
    if is_remote(url):
        return _find_remote(url)
    if url.startswith("pipe:"):
        raise UserError(f"urls: {url!r} is a pipe; shards are read at random: give their URLs, or copy or mount them")
    if os.path.isdir(url):
        if found := sorted(glob.glob(os.path.join(glob.escape(url), f"*{suffix}"))):
            return found
        raise UserError(f"urls: the folder {url!r} holds no {suffix} file")
    if os.path.isfile(url):
        return [url]
    paths: list[str] = []
    for pattern in expand_braces(url):
        if glob.has_magic(pattern):
            if not (found := sorted(glob.glob(pattern, recursive=True))):
                raise UserError(f"urls: {pattern!r} matches no file")
            paths += found
        elif os.path.isfile(pattern):
            paths.append(pattern)
        else:
            raise UserError(
                f"urls: {pattern!r} does not exist; give a folder, a glob, a brace range or a list of shards"
            )
    return paths
