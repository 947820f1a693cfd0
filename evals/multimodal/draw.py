"""Pages of pictures with text beside them, on which no text leaves its place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image

from evals.detection.sheet import FAINT, INK, MARGIN, Sheet, shown_size
from pretrain.types import UserError

#: Written where a text is empty.
EMPTY = "–"
#: A blank at which no line ends.
NO_BREAK = "\N{NO-BREAK SPACE}"
RIGHT, WRONG = "✓", "✗"
#: Told apart with any kind of colour vision; the marks tell the same.
_RIGHT_COLOR, _WRONG_COLOR = "#1a7f5a", "#c2571a"
#: Stands for a letter that the font lacks.
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
#: In points: what is asked and headings, lines beside a picture, what stands above them, marks; height of a line over its font's.
_ASKED, _BODY, _ABOVE, _MARK, _LEADING = 8.5, 8.0, 7.0, 10.0, 1.3
_TITLE, _NOTE = 11.0, 8.0
#: In inches: between picture and text, columns of text, tiles side by side, rows of tiles; the widest name; the narrowest page.
_GAP, _COLUMN, _GUTTER, _BETWEEN, _MAX_NAME, _MIN_PAGE = 0.12, 0.07, 0.3, 0.2, 1.2, 5.0
#: Most lines of what is asked, of a line's text, of a title and a note.
_MOST_ASKED, _MOST_TEXT, _MOST_TITLE, _MOST_NOTE = 6, 4, 2, 3
_ACROSS = 2
#: More letters than a line of any page holds.
_MAX_LETTERS = 500
#: Pictures are shrunk to this many pixels a side before they are drawn, several times what they get on the page.
_MAX_PIXELS = 640


@dataclass(frozen=True)
class Line:
    """What one model, or the data set, says.

    Attributes:
        name: who says it.
        text: what is said.
        right: shown by a mark; None for none.
        number: a short one behind the mark, "" for none.
        faint: whether the text is less important.
    """

    name: str
    text: str
    right: bool | None = None
    number: str = ""
    faint: bool = False


@dataclass(frozen=True)
class Tile:
    """A picture and what stands beside it.

    Attributes:
        image: RGB; None where it cannot be read.
        above: a faint line, e.g. the example's kind and id.
        asked: in bold; None where nothing is asked.
        lines: below each other.
    """

    image: Image.Image | None
    above: str
    asked: str | None
    lines: Sequence[Line]


@dataclass(frozen=True)
class Part:
    """Tiles below a heading; "" for none."""

    heading: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class _Piece:
    """A line of text and its place in inches from its block's top left corner; it may be `room` wide."""

    x: float
    y: float
    text: str
    size: float
    color: str
    bold: bool
    room: float


@dataclass(frozen=True)
class _Columns:
    """Widths in inches, the same all over a page; 0 where no line has such a thing."""

    mark: float
    number: float
    name: float


@cache
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, Sheet(width=1, height=1).figure.dpi)


@cache
def _font(size: float, bold: bool) -> FontProperties:
    return FontProperties(size=size, weight="bold" if bold else "normal")


@cache
def text_width(text: str, *, size: float, bold: bool = False) -> float:
    """Width in inches of a line as it is drawn: letters are fitted to the page's pixels, so that it depends on them."""
    return _renderer().get_text_width_height_descent(text, _font(size, bold), False)[0] / _renderer().dpi


@cache
def _has_glyph(char: str) -> bool:
    return get_font(findfont(FontProperties())).get_char_index(ord(char)) != 0


def printable(text: str) -> str:
    """One line without control characters; letters that the font lacks are marked, an empty text is a dash."""
    spaced = "".join(char if char.isprintable() or char == NO_BREAK else " " for char in text)
    words = [word for word in spaced.split(" ") if word.strip(NO_BREAK)]
    return "".join(char if _has_glyph(char) else _UNKNOWN for char in " ".join(words)) or EMPTY


def _most(count: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `count` that fits, by bisection; 0 where none does."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def shorten(text: str, width: float, *, size: float, bold: bool = False, end: bool = False) -> str:
    """As much of a line as fits into `width` inches, its beginning or its `end`, with an ellipsis where something is missing."""
    text = text[-_MAX_LETTERS:] if end else text[:_MAX_LETTERS]

    def part(kept: int) -> str:
        return "…" + text[len(text) - kept :].lstrip() if end else text[:kept].rstrip() + "…"

    def fits(line: str) -> bool:
        return text_width(line, size=size, bold=bold) <= width

    return text if fits(text) else part(_most(len(text), lambda kept: fits(part(kept))))


def wrap(text: str, width: float, *, size: float, most: int, bold: bool = False) -> list[str]:
    """Lines of at most `width` inches; words that are wider are divided, and the last of `most` lines ends with an ellipsis
    where there is more text than that."""
    left = printable(text).split(" ")
    lines: list[str] = []

    def fits(line: str) -> bool:
        return text_width(line[:_MAX_LETTERS], size=size, bold=bold) <= width

    while left and len(lines) < most:
        line = ""
        while left:
            longer = f"{line} {left[0]}" if line else left[0]
            if not fits(longer):
                break
            line = longer
            left.pop(0)
        if not line:
            kept = max(1, _most(min(len(left[0]), _MAX_LETTERS), lambda count: fits(left[0][:count])))
            line, left[0] = left[0][:kept], left[0][kept:]
        lines.append(line)
    if left:
        lines[-1] = shorten(f"{lines[-1]} {' '.join(left)}", width, size=size, bold=bold)
    return lines


def draw_page(
    path: str | Path,
    parts: Sequence[Part],
    *,
    title: str,
    notes: Sequence[str],
    picture_width: float,
    column_width: float,
) -> Path:
    """Draw two tiles a row, each a picture with its text to the right; small pictures are enlarged as squares.

    Args:
        path: the PNG to write.
        parts: of the page, one below the other.
        title: above all.
        notes: faint lines below it.
        picture_width: in inches, of the widest.
        column_width: in inches, of the text.

    Raises:
        UserError: no tiles.
    """
    tiles = [tile for part in parts for tile in part.tiles]
    if not tiles:
        raise UserError(f"{path}: there is nothing to draw; give one example or more")
    across = min(_ACROSS, max(len(part.tiles) for part in parts))
    tile_width = picture_width + _GAP + column_width
    width = max(_MIN_PAGE, 2 * MARGIN + across * (tile_width + _GUTTER) - _GUTTER)
    columns = _columns(tiles)
    texts = {id(tile): _lay_out(tile, columns, width=column_width) for tile in tiles}

    def height_of(tile: Tile) -> float:
        return max(shown_size(_shown(tile), picture_width)[1], texts[id(tile)][1])

    page, blocks, y = width - 2 * MARGIN, [], MARGIN
    for text, size, bold, color, most in [
        (title, _TITLE, True, INK, _MOST_TITLE),
        *((note, _NOTE, False, FAINT, _MOST_NOTE) for note in notes),
    ]:
        pieces, height = _block(text, page, size=size, bold=bold, color=color, most=most)
        blocks.append((y, pieces))
        y += height + (0.07 if bold else 0.02)
    placed = []
    y += 0.5 * _BETWEEN
    for part in parts:
        if part.heading and part.tiles:
            pieces, height = _block(part.heading, page, size=9, bold=True, color=INK, most=_MOST_TITLE)
            blocks.append((y, pieces))
            y += height + 0.08
        for start in range(0, len(part.tiles), across):
            row = part.tiles[start : start + across]
            placed += [(MARGIN + n * (tile_width + _GUTTER), y, tile) for n, tile in enumerate(row)]
            y += max(map(height_of, row)) + _BETWEEN
    sheet = Sheet(width=width, height=y - _BETWEEN + MARGIN)
    for top, pieces in blocks:
        _write(sheet, MARGIN, top, pieces)
    for x, top, tile in placed:
        _draw_picture(sheet, x, top, tile, width=picture_width)
        _write(sheet, x + picture_width + _GAP, top, texts[id(tile)][0])
    return sheet.write(path)


def _columns(tiles: Sequence[Tile]) -> _Columns:
    lines = [line for tile in tiles for line in tile.lines]
    mark = max((text_width(_mark(line)[0], size=_MARK) for line in lines if line.right is not None), default=0.0)
    number = max((text_width(line.number, size=_BODY, bold=True) for line in lines if line.number), default=0.0)
    name = max((text_width(printable(line.name), size=_BODY) for line in lines), default=0.0)
    return _Columns(mark, number, min(name, _MAX_NAME))


def _mark(line: Line) -> tuple[str, str]:
    """A line's mark and its colour."""
    return (RIGHT, _RIGHT_COLOR) if line.right else (WRONG, _WRONG_COLOR)


def _lay_out(tile: Tile, columns: _Columns, *, width: float) -> tuple[list[_Piece], float]:
    """The text of a tile, and its height in inches."""
    above = shorten(printable(tile.above), width, size=_ABOVE)
    pieces, y = [_Piece(0, 0, above, _ABOVE, FAINT, False, width)], _ABOVE * _LEADING / 72 + 0.02
    if tile.asked is not None:
        more, height = _block(tile.asked, width, size=_ASKED, bold=True, color=INK, most=_MOST_ASKED, y=y)
        pieces += more
        y += height
    y += 0.05
    for line in tile.lines:
        x, color = 0.0, INK
        if line.right is not None:
            mark, color = _mark(line)
            raised = 0.5 * 0.76 * (_MARK - _BODY) / 72  # stands at the middle of its line
            pieces.append(_Piece(0, y - raised, mark, _MARK, color, False, columns.mark))
        x += columns.mark + _COLUMN if columns.mark else 0.0
        if line.number:
            indent = columns.number - text_width(line.number, size=_BODY, bold=True)
            pieces.append(_Piece(x + indent, y, line.number, _BODY, color, True, columns.number - indent))
        x += columns.number + _COLUMN if columns.number else 0.0
        name = shorten(printable(line.name), columns.name, size=_BODY, end=True)  # the end tells runs apart
        pieces.append(_Piece(x, y, name, _BODY, FAINT, False, columns.name))
        x += columns.name + _COLUMN
        color = FAINT if line.faint else INK
        more, height = _block(line.text, width - x, size=_BODY, bold=False, color=color, most=_MOST_TEXT, x=x, y=y)
        pieces += more
        y += height + 0.03
    return pieces, y


def _block(
    text: str, width: float, *, size: float, bold: bool, color: str, most: int, x: float = 0.0, y: float = 0.0
) -> tuple[list[_Piece], float]:
    """Wrapped lines and their height in inches."""
    lines = wrap(text, width, size=size, most=most, bold=bold)
    leading = size * _LEADING / 72
    pieces = [_Piece(x, y + n * leading, line, size, color, bold, width) for n, line in enumerate(lines)]
    return pieces, len(lines) * leading


def _write(sheet: Sheet, x: float, y: float, pieces: Sequence[_Piece]) -> None:
    for piece in pieces:
        sheet.text(x + piece.x, y + piece.y, piece.text, size=piece.size, color=piece.color, bold=piece.bold)


def _shown(tile: Tile) -> Image.Image:
    return tile.image if tile.image is not None else Image.new("RGB", (8, 8), (226, 229, 231))


def _draw_picture(sheet: Sheet, x: float, y: float, tile: Tile, *, width: float) -> None:
    image = _shown(tile)
    if max(image.size) > _MAX_PIXELS:
        image = image.copy()
        image.thumbnail((_MAX_PIXELS, _MAX_PIXELS))
    _, height = sheet.picture(x, y, image, width=width)
    if tile.image is None:
        pieces, tall = _block("the picture cannot be read", width - 0.2, size=_BODY, bold=False, color=FAINT, most=2)
        _write(sheet, x + 0.1, y + (height - tall) / 2, pieces)
