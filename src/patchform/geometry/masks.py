"""Masks of objects, each kept as the pixels in a box around it (`records.Bitmaps`): cut, turned, sampled, pasted.

Nothing here makes N pictures of N objects unless asked for them, and the objects of a call are handled together.
Results are on the device of what is given. A box may be wider than its object (`tight` says the least) and has no width
and no height where nothing of the object is left. Objects are never dropped, so that a row stays its row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchform.errors import DataError
from patchform.records import Bitmaps

AT_ONCE = 1 << 22
"""Pixels on which `sample` and `paste` work at once: bounds their memory to some 100 MB."""

# ------------------------------------------------------------------------------------------------ rows, columns, pixels


def _sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 4) -> heights and widths, (N,) each."""
    return boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]


def _starts(counts: Tensor) -> Tensor:
    """(N,) -> (N,): where each begins when so many lie one after the other."""
    return counts.cumsum(0) - counts


def _aranges(counts: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Things one after the other, `counts` (N,) of each owner: the owner, and `first` (N,) of it counted on."""
    owner = torch.repeat_interleave(counts)
    return owner, torch.arange(len(owner), device=counts.device) + (first - _starts(counts))[owner]


def _lines(boxes: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Of the rows of all boxes, one box after the other: whose, and y. And of the columns: whose, and x."""
    heights, widths = _sides(boxes)
    return _aranges(heights, boxes[:, 1]), _aranges(widths, boxes[:, 0])


def _crossings(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """For each pixel of all boxes, row by row: its place among the rows, and among the columns, of `_lines`."""
    heights, widths = _sides(boxes)
    box = torch.repeat_interleave(heights)
    return _aranges(widths[box], _starts(widths)[box])


def _flat_index(boxes: Tensor, size: tuple[int, int], *, pictures: bool = False) -> Tensor:
    """For each pixel of all boxes: its place in a flat picture of `size`, or in N of them, one for each box."""
    (box, y), (_, x) = _lines(boxes)
    row, column = _crossings(boxes)
    return (y * size[1] + box * (size[0] * size[1] * pictures))[row] + x[column]


def _gather(bitmaps: Bitmaps, boxes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The bits of new boxes (N, 4): `rows` and `columns` say of each of their `_lines` which old y and x it shows."""
    heights, widths = _sides(bitmaps.boxes)
    first = _starts(heights * widths) - bitmaps.boxes[:, 1] * widths - bitmaps.boxes[:, 0]
    (box, _), _ = _lines(boxes)
    row, column = _crossings(boxes)
    return bitmaps.bits[(first[box] + rows * widths[box])[row] + columns[column]]


def _emptied(boxes: Tensor) -> Tensor:
    """Boxes that lack a width or a height get none of either."""
    heights, widths = _sides(boxes)
    return torch.where(((heights <= 0) | (widths <= 0))[:, None], boxes[:, [0, 1, 0, 1]].clamp(min=0), boxes)


# ------------------------------------------------------------------------------------------------------ dense and back


def none(size: tuple[int, int]) -> Bitmaps:
    """Bitmaps of no object."""
    return Bitmaps(torch.zeros(0, dtype=torch.bool), torch.zeros(0, 4, dtype=torch.int64), size)


def from_dense(masks: Tensor) -> Bitmaps:
    """(N, H, W) bool, or numbers of which those above 0 count -> bitmaps with tight boxes."""
    masks = masks > 0
    size = (masks.shape[1], masks.shape[2])
    boxes = torch.stack([*_extent(masks.any(1)), *_extent(masks.any(2))], 1)[:, [0, 2, 1, 3]]
    return Bitmaps(masks.flatten()[_flat_index(boxes, size, pictures=True)], boxes, size)


def _extent(lines: Tensor) -> tuple[Tensor, Tensor]:
    """(N, L) bool -> the first that is set, and one past the last; 0 and 0 where none is."""
    length = lines.shape[1]
    if length == 0 or len(lines) == 0:
        nothing = torch.zeros(len(lines), dtype=torch.int64, device=lines.device)
        return nothing, nothing
    any_set, numbers = lines.any(1), lines.int()
    return numbers.argmax(1) * any_set, (length - numbers.flip(1).argmax(1)) * any_set


def to_dense(bitmaps: Bitmaps, size: tuple[int, int] | None = None) -> Tensor:
    """(N, H, W) bool, of the picture's size, or of a larger one: what is added lies below it and on its right."""
    size = size or bitmaps.size
    dense = torch.zeros(len(bitmaps.boxes), *size, dtype=torch.bool, device=bitmaps.bits.device)
    dense.view(-1)[_flat_index(bitmaps.boxes, size, pictures=True)] = bitmaps.bits
    return dense


def union(bitmaps: Bitmaps) -> Tensor:
    """(H, W) bool: where any object is."""
    dense = torch.zeros(bitmaps.size, dtype=torch.bool, device=bitmaps.bits.device)
    dense.view(-1)[_flat_index(bitmaps.boxes, bitmaps.size)[bitmaps.bits]] = True
    return dense


def without(bitmaps: Bitmaps, hidden: Tensor) -> Bitmaps:
    """What is left of the objects where `hidden` (H, W) bool is not."""
    return bitmaps._replace(bits=bitmaps.bits & ~hidden.flatten()[_flat_index(bitmaps.boxes, bitmaps.size)])


# ------------------------------------------------------------------------------------------------------ which and where


def areas(bitmaps: Bitmaps) -> Tensor:
    """(N,) int64: pixels of each object."""
    heights, widths = _sides(bitmaps.boxes)
    counts = heights * widths
    summed = F.pad(bitmaps.bits.cumsum(0), (1, 0))
    return summed[_starts(counts) + counts] - summed[_starts(counts)]


def tight(bitmaps: Bitmaps) -> Tensor:
    """(N, 4) int64: the least boxes that hold the objects; without width and height where there is nothing."""
    (box_of_row, y), (box_of_column, x) = _lines(bitmaps.boxes)
    row, column = (crossing[bitmaps.bits] for crossing in _crossings(bitmaps.boxes))
    low = torch.full_like(bitmaps.boxes, max(bitmaps.size))[:, :2]
    high = torch.zeros_like(low)
    for axis, owner, line, used in ((0, box_of_column, x, column), (1, box_of_row, y, row)):
        occupied = torch.zeros(len(line), dtype=torch.bool, device=line.device)
        occupied[used] = True
        low[:, axis].scatter_reduce_(0, owner[occupied], line[occupied], "amin")
        high[:, axis].scatter_reduce_(0, owner[occupied], line[occupied] + 1, "amax")
    boxes = torch.cat([low, high], 1)
    return torch.where((high > low).all(1, keepdim=True), boxes, torch.zeros_like(boxes))


def take(bitmaps: Bitmaps, index: Tensor) -> Bitmaps:
    """Objects by number, (K,) int64 in any order and more than once, or by an (N,) bool."""
    if index.dtype == torch.bool:
        index = index.nonzero()[:, 0]
    heights, widths = _sides(bitmaps.boxes)
    counts = heights * widths
    _, pixels = _aranges(counts[index], _starts(counts)[index])
    return bitmaps._replace(bits=bitmaps.bits[pixels], boxes=bitmaps.boxes[index])


def concatenate(parts: Sequence[Bitmaps], size: tuple[int, int] | None = None) -> Bitmaps:
    """The objects of several bitmaps of one picture. `size` is needed where there may be no part."""
    if not parts:
        return none(size or (0, 0))
    bits, boxes = torch.cat([part.bits for part in parts]), torch.cat([part.boxes for part in parts])
    return Bitmaps(bits, boxes, size or parts[0].size)


def flip(bitmaps: Bitmaps, axis: int) -> Bitmaps:
    """Mirrored along one axis: -1 left and right, -2 top and bottom."""
    height, width = bitmaps.size
    left, top, right, bottom = bitmaps.boxes.unbind(1)
    if axis == -1:
        boxes = torch.stack([width - right, top, width - left, bottom], 1)
    else:
        boxes = torch.stack([left, height - bottom, right, height - top], 1)
    (_, y), (_, x) = _lines(boxes)
    y, x = (y, width - 1 - x) if axis == -1 else (height - 1 - y, x)
    return Bitmaps(_gather(bitmaps, boxes, y, x), boxes, bitmaps.size)


def view(bitmaps: Bitmaps, box: tuple[int, int, int, int], size: tuple[int, int]) -> Bitmaps:
    """What a box of the picture shows when it is resized to `size`: to cut, to enlarge, to shift or to shrink.

    Each pixel has the bit of the old pixel that its centre lies in (nearest), as masks are resampled by torchvision's
    transforms and most pipelines for COCO.

    Args:
        bitmaps: N objects.
        box: left, top, right, bottom in whole pixels, the last two exclusive; it may reach beyond the picture.
        size: (height, width) of the result.
    """
    left, top, right, bottom = box
    device = bitmaps.boxes.device
    # of each row and column of the result: the old one that it shows
    y, x = (
        (((torch.arange(new, dtype=torch.float64) + 0.5) * ((high - low) / new)).long() + low).to(device)
        for new, low, high in ((size[0], top, bottom), (size[1], left, right))
    )
    ends = [torch.searchsorted(line, bitmaps.boxes[:, axis].contiguous()) for axis, line in enumerate((x, y, x, y))]
    boxes = _emptied(torch.stack(ends, 1))
    (_, rows), (_, columns) = _lines(boxes)
    return Bitmaps(_gather(bitmaps, boxes, y[rows], x[columns]), boxes, size)


# --------------------------------------------------------------------------------------- squares of numbers and back


def sample(bitmaps: Bitmaps, boxes: Tensor, index: Tensor, size: int) -> Tensor:
    """Objects cut out by boxes, as squares: what RoIAlign (He et al. 2017, section 3) gives on the dense masks.

    The points of a cell are averaged as there: as many in a row as the cell has pixels, rounded up. Pixel centres are
    at halves (`aligned=True` of torchvision's `roi_align`; what it gives without is that of boxes half a pixel further
    right and down).

    Args:
        bitmaps: N objects.
        boxes: (K, 4) float xyxy, pixels of the picture.
        index: (K,) int64: which object each box cuts from.
        size: cells of a side.

    Returns:
        (K, size, size) float32 in 0..1.
    """
    squares = torch.zeros(len(boxes), size, size, device=boxes.device)
    if not len(boxes) or not len(bitmaps.bits):
        return squares
    boxes = boxes.float()
    # work on K boxes costs K times that on the largest: boxes of about one size go together
    longest = (boxes[:, 2:] - boxes[:, :2]).amax(1).clamp(min=size) + 2
    level = (longest.log2() * 2).ceil().long()
    for number in level.unique().tolist():
        at_once = max(1, int(AT_ONCE / 2**number))
        for chosen in (level == number).nonzero()[:, 0].split(at_once):
            squares[chosen] = _sampled(bitmaps, boxes[chosen], index[chosen], size)
    return squares


def _sampled(bitmaps: Bitmaps, boxes: Tensor, index: Tensor, size: int) -> Tensor:
    heights, widths = _sides(bitmaps.boxes)
    own, width = bitmaps.boxes[index], widths[index]
    y, down = _cells(boxes[:, 1], boxes[:, 3], size, bitmaps.size[0], own[:, 1], own[:, 3])
    x, across = _cells(boxes[:, 0], boxes[:, 2], size, bitmaps.size[1], own[:, 0], own[:, 2])
    rows = _starts(heights * widths)[index][:, None] + (y - own[:, 1:2]) * width[:, None]
    flat = rows[:, :, None] + (x - own[:, :1])[:, None]
    bits = bitmaps.bits[flat.clamp_(0, len(bitmaps.bits) - 1)]  # what is outside of its box weighs nothing
    with torch.autocast(boxes.device.type, enabled=False):
        return down @ bits.float() @ across.mT


def _cells(low: Tensor, high: Tensor, size: int, length: int, begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """One axis of RoIAlign: the lines of pixels that are in a box and in its object's own, and what they weigh.

    Args:
        low: (K,) float, where the boxes begin.
        high: where they end.
        size: cells.
        length: of the picture's axis.
        begin: (K,) int64, where the objects' own boxes begin.
        end: where they end.

    Returns:
        (K, L) int64 and (K, size, L) float32: 0 for those of the L lines that are not in both.
    """
    side = (high - low) / size
    number = side.ceil()
    point = torch.arange(int(number.max().clamp(min=1)), device=low.device)
    cell = torch.arange(size, device=low.device)[:, None]
    step = side / number.clamp(min=1)
    at = (low - 0.5)[:, None, None] + cell * side[:, None, None] + (point + 0.5) * step[:, None, None]
    counts = (point < number[:, None, None]) & (at >= -1) & (at <= length)
    at = at.clamp(0, length - 1)
    # points lie at most a pixel apart: those of a cell see one line more than there are points, one after the other
    base = at[..., :1].floor()
    lines = base + torch.arange(len(point) + 1, device=low.device)
    near = (1 - (at[..., None] - lines[:, :, None]).abs()).clamp(min=0) * counts[..., None]
    weights = near.sum(2) / number.clamp(min=1)[:, None, None]
    first = base[:, 0].long().maximum(begin[:, None])
    beyond = (base[:, -1].long() + len(point) + 1).minimum(end[:, None])
    line = first + torch.arange(int((beyond - first).max().clamp(min=1)), device=low.device)
    of_cell = line[:, None] - base.long()
    inside = (of_cell >= 0) & (of_cell <= len(point)) & (line < end[:, None])[:, None]
    return line, weights.gather(2, of_cell.clamp(0, len(point))) * inside


def paste(probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Bitmaps:
    """Squares put back into their boxes: what torchvision's `paste_masks_in_image` has above the threshold.

    As there, a ring of zeros is put around each square, its box grows by as much, and its ends are cut to whole pixels,
    both inclusive.

    Args:
        probabilities: (K, s, s) float.
        boxes: (K, 4) float xyxy, pixels of the picture.
        size: (height, width) of the picture.
        threshold: what is above it belongs to the object.
    """
    probabilities, boxes = F.pad(probabilities.float(), (1, 1, 1, 1)), boxes.float()
    side = probabilities.shape[-1]
    centre, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5 * (side / (side - 2))
    grown = torch.cat([centre - half, centre + half], 1).long()
    limits = grown.new_tensor([size[1], size[0]])
    low, high = grown[:, :2].clamp(min=0).minimum(limits), (grown[:, 2:] + 1).minimum(limits)
    own = _emptied(torch.cat([low, high], 1))
    heights, widths = _sides(own)
    bits = [own.new_zeros(0, dtype=torch.bool)]
    for part in _portions(heights * widths):
        bits.append(_pasted(probabilities[part], grown[part], own[part]) > threshold)
    return Bitmaps(torch.cat(bits), own, size)


def _portions(counts: Tensor) -> Iterator[slice]:
    """Consecutive objects of together about `AT_ONCE` pixels."""
    portions = (counts.cumsum(0) // AT_ONCE).unique_consecutive(return_counts=True)[1].tolist()
    start = 0
    for number in portions:
        yield slice(start, start + number)
        start += number


def _pasted(squares: Tensor, grown: Tensor, boxes: Tensor) -> Tensor:
    """(K, s, s) stretched over `grown` boxes: the values at the pixels of `boxes`, one box after the other."""
    (box, y), (box_of_column, x) = _lines(boxes)
    upper, lower, down = _between(y, grown[box, 1], grown[box, 3], squares.shape[1])
    across = torch.lerp(squares[box, upper], squares[box, lower], down[:, None])
    before, behind, right = _between(x, grown[box_of_column, 0], grown[box_of_column, 2], squares.shape[2])
    row, column = _crossings(boxes)
    return torch.lerp(across[row, before[column]], across[row, behind[column]], right[column])


def _between(pixel: Tensor, low: Tensor, high: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """For pixels of an axis from `low` to `high`, inclusive: the cells on both sides, and how near the second is."""
    length = (high - low + 1).clamp(min=1)
    at = ((pixel - low + 0.5) * (cells / length.float()) - 0.5).clamp(min=0)
    first = at.long().clamp(max=cells - 1)
    return first, (first + 1).clamp(max=cells - 1), at - first


# ------------------------------------------------------------------------------------------------- outlines and back


def from_polygons(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> Bitmaps:
    """One object: the union of polygons, with the pixels that COCO's own rasteriser takes for inside.

    Args:
        polygons: each (K, 2) x, y in pixels, K of at least 3; they may reach beyond the picture.
        size: (height, width) of the picture.
    """
    from faster_coco_eval import mask as coco

    points = np.concatenate([np.zeros((0, 2)), *polygons]).astype(np.float64)
    limits = np.array(size[::-1])
    # the rasteriser works on a fifth of a pixel and treats the picture's edge specially: stay clear of its grid
    low = np.clip(np.floor(points.min(0, initial=np.inf)) - 2, 0, limits) if len(points) else limits
    high = np.clip(np.ceil(points.max(0, initial=-np.inf)) + 3, 0, limits) if len(points) else limits
    (left, top), (width, height) = low.astype(int).tolist(), (high - low).astype(int).tolist()
    if width <= 0 or height <= 0:
        return _placed(np.zeros((1, 1), bool), 0, 0, size)
    shifted = [(polygon - low).astype(np.float64).ravel().tolist() for polygon in polygons]
    dense = coco.decode(coco.merge(coco.frPyObjects(shifted, height, width)))
    return _placed(dense.astype(bool), left, top, size)


def _placed(dense: np.ndarray, left: int, top: int, size: tuple[int, int]) -> Bitmaps:
    """One object from (h, w) bool, whose corner is at (left, top) of the picture."""
    rows, columns = np.flatnonzero(dense.any(1)), np.flatnonzero(dense.any(0))
    if not len(rows):
        return Bitmaps(torch.zeros(0, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.int64), size)
    (high, low), (first, last) = ((int(line[0]), int(line[-1]) + 1) for line in (rows, columns))
    bits = torch.from_numpy(dense[high:low, first:last].ravel())
    return Bitmaps(bits, torch.tensor([[left + first, top + high, left + last, top + low]]), size)


def from_runs(counts: bytes | Sequence[int], size: tuple[int, int]) -> Bitmaps:
    """One object from COCO's run lengths, compressed or not: down the columns, pixels outside first.

    Raises:
        DataError: they do not add up to the picture.
    """
    lengths = run_lengths(counts) if isinstance(counts, bytes) else np.asarray(counts, np.int64)
    height, width = size
    if (lengths < 0).any() or lengths.sum() != height * width:
        total = int(lengths.sum())
        raise DataError(f"run lengths of {total} pixels for a mask of {width} x {height}", remedy="check its size")
    ends = lengths.cumsum()
    first, last = ends[:-1:2], ends[1::2]
    first, last = first[: len(last)][last > first[: len(last)]], last[last > first[: len(last)]]
    if not len(first):
        return _placed(np.zeros((1, 1), bool), 0, 0, size)
    left, right = int(first[0]) // height, -(-int(last[-1]) // height)
    # the columns in between alone: outside, inside, outside ...
    edges = np.stack([first, last], 1).ravel() - left * height
    between = np.diff(edges, prepend=0, append=(right - left) * height)
    inside = np.repeat(np.arange(len(between)) % 2 == 1, between)
    return _placed(inside.reshape(right - left, height).T, left, 0, size)


def run_lengths(text: bytes) -> np.ndarray:
    """Run lengths from COCO's compressed form, (R,) int64.

    Five bits a character, least first; 32 says that more follow, 16 in the last one that the number is negative. From
    the fourth number on, they are differences to the last but one.

    Raises:
        DataError: a character that cannot occur, or an end within a number.
    """
    letters = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    more = (letters & 32) > 0
    if ((letters < 0) | (letters > 63)).any() or (len(more) and more[-1]):
        raise DataError("run lengths that are not in COCO's compressed form")
    if not len(letters):
        return letters
    ends = np.flatnonzero(~more)
    begins = np.concatenate([[0], ends[:-1] + 1])
    digit = np.arange(len(letters)) - np.repeat(begins, ends - begins + 1)
    if digit.max() > 11:
        raise DataError("run lengths that are not in COCO's compressed form")
    values = np.add.reduceat((letters & 31) << (5 * digit), begins)
    values -= ((letters[ends] & 16) > 0) * (np.int64(1) << (5 * (digit[ends] + 1)))
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def to_runs(bitmaps: Bitmaps) -> list[bytes]:
    """COCO's compressed run lengths of each object."""
    from faster_coco_eval import mask as coco

    height, width = bitmaps.size
    bits, boxes = bitmaps.bits.cpu().numpy(), bitmaps.boxes.tolist()
    runs, start = [], 0
    for left, top, right, bottom in boxes:
        count = (bottom - top) * (right - left)
        columns = np.zeros((right - left, height), bool)
        columns[:, top:bottom] = bits[start : start + count].reshape(bottom - top, right - left).T
        start += count
        edges = np.flatnonzero(np.diff(columns.ravel(), prepend=False, append=False)) + left * height
        lengths = np.diff(edges, prepend=0, append=height * width)
        lengths = lengths[: len(lengths) - (lengths[-1] == 0)]  # nothing behind the last pixel
        runs.append(coco.frPyObjects({"counts": lengths.tolist(), "size": [height, width]}, height, width)["counts"])
    return runs
