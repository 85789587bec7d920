"""The keydir: where each value lies in the log, in 12 bytes a value."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence

from .position import Position, pack

_COUNT_SHIFT = 8
"""A value's number is a count, and in the bits below it the shard."""
_STEP = 1 << _COUNT_SHIFT
_TAG_MASK = _STEP - 1
_PAGE_SHIFT = 8
_PAGE_SIZE = 1 << _PAGE_SHIFT
_INDEX_MASK = _PAGE_SIZE - 1
_IS_INDEX_0 = _INDEX_MASK << _COUNT_SHIFT
"""A number with none of these bits is the first of its page."""
_SPARSE = _PAGE_SIZE // 12
"""With so few values left, a page takes more memory than a dict of them."""
_OFFSET_BITS = 32
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
_NONE = -1
# Of the integers in arrays, these are the ones that CPython converts without a detour.
_PLACE, _LENGTH = "L", "I"
assert array(_PLACE).itemsize == 8 and array(_LENGTH).itemsize == 4


Columns = tuple[bytes, bytes, bytes]
"""Numbers, places and lengths as little-endian integers of 8, 8 and 4 bytes."""


class _Page:
    """Positions of up to 256 numbers of one shard that follow one another; length 0 = none."""

    __slots__ = ("gone", "lengths", "places")

    def __init__(self) -> None:
        self.places = array(_PLACE)
        self.lengths = array(_LENGTH)
        self.gone = 0
        """How many of them have no position."""

    def __len__(self) -> int:
        return len(self.lengths) - self.gone


class Keydir:
    """number → position. Numbers are mostly given out one after the other, and removed so."""

    def __init__(self) -> None:
        self._pages: dict[int, _Page] = {}
        self._loose: dict[int, tuple[int, int]] = {}
        """number → place, length: what was left of pages that most values have gone from."""
        self._page = _Page()
        """The one that was written last."""
        self._key = _NONE
        """Its key."""
        self._next = _NONE
        """The number that comes at its end."""
        self._leaves_sparse = False
        """Whether it has become so empty that it is to be dissolved once another one is written."""

    def set(self, number: int, segment: int, offset: int, length: int) -> None:
        """Note where a value lies, or lies now."""
        if number != self._next:
            self._set_elsewhere(number, segment, offset, length)
            return
        self._page.places.append(segment << _OFFSET_BITS | offset)
        self._page.lengths.append(length)
        number += _STEP
        self._next = number if number & _IS_INDEX_0 else _NONE

    def _set_elsewhere(self, number: int, segment: int, offset: int, length: int) -> None:
        assert length > 0
        if self._loose:
            self._loose.pop(number, None)
        key, index = _key(number), _index(number)
        page = self._pages.get(key)
        if page is None:
            page = self._pages[key] = _Page()
        if (missing := index + 1 - len(page.lengths)) > 0:
            page.places.extend([0] * missing)
            page.lengths.extend([0] * missing)
            page.gone += missing
        if not page.lengths[index]:
            page.gone -= 1
        page.places[index] = segment << _OFFSET_BITS | offset
        page.lengths[index] = length
        if page is not self._page:
            self._leave()
            self._page, self._key = page, key
        number += _STEP
        is_end = index + 1 == len(page.lengths)
        self._next = number if is_end and number & _IS_INDEX_0 else _NONE

    def _leave(self) -> None:
        if self._leaves_sparse and len(self._page) <= _SPARSE:
            self._dissolve(self._key)
        self._leaves_sparse = False

    def get(self, number: int) -> Position | None:
        """Return where a value lies; None if there is none of that number."""
        page, index = self._pages.get(_key(number)), _index(number)
        if page is not None and index < len(page.lengths) and (length := page.lengths[index]):
            place = page.places[index]
        elif (found := self._loose.get(number)) is not None:
            place, length = found
        else:
            return None
        return _position(place, length)

    def move(self, number: int, old: Position, new: Position) -> bool:
        """Note that a value lies elsewhere now; False if it no longer lay where it did."""
        if self.get(number) != old:
            return False
        place = new.segment << _OFFSET_BITS | new.offset
        page, index = self._pages.get(_key(number)), _index(number)
        if page is not None and index < len(page.lengths) and page.lengths[index]:
            page.places[index] = place
        else:
            self._loose[number] = (place, new.length)
        return True

    def pop(self, number: int) -> Position | None:
        """Forget a value; return where it lay, None if there is none of that number."""
        key, index = _key(number), _index(number)
        page = self._pages.get(key)
        if page is None or index >= len(page.lengths) or not page.lengths[index]:
            loose = self._loose.pop(number, None)
            return None if loose is None else _position(*loose)
        found = _position(page.places[index], page.lengths[index])
        page.lengths[index] = 0
        page.gone += 1
        self._has_lost(page, key)
        return found

    def take(self, number: int) -> bytes | None:
        """Forget a value as `pop` does; return where it lay as a packed position."""
        # Most are on a page; and there is no need for objects that are packed at once.
        page, index = self._pages.get(_key(number)), number >> _COUNT_SHIFT & _INDEX_MASK
        if page is None or index >= len(page.lengths) or not (length := page.lengths[index]):
            position = self.pop(number)
            return None if position is None else pack(*position)
        place = page.places[index]
        page.lengths[index] = 0
        page.gone += 1
        if len(page.lengths) - page.gone <= _SPARSE:
            self._has_lost(page, _key(number))
        return pack(place >> _OFFSET_BITS, place & _OFFSET_MASK, length)

    def _has_lost(self, page: _Page, key: int) -> None:
        if len(page) > _SPARSE:
            return
        if page is self._page:
            self._leaves_sparse = True
        else:
            self._dissolve(key)

    def _dissolve(self, key: int) -> None:
        page = self._pages.pop(key)
        first = _first(key)
        for index, length in enumerate(page.lengths):
            if length:
                self._loose[first + index * _STEP] = (page.places[index], length)

    def pages(self) -> list[int]:
        """Return the keys of all pages there are now; `columns` tells what is on them."""
        return list(self._pages)

    def loose(self) -> list[int]:
        """Return the numbers that are on no page now. To be asked for after the pages were read:
        what leaves a page goes here.
        """
        return list(self._loose)

    def columns(self, keys: Sequence[int], loose: Sequence[int]) -> Columns:
        """Return what is on some pages, and some that are on none, as far as it is still there."""
        numbers, places, lengths = array(_PLACE), array(_PLACE), array(_LENGTH)
        for key in keys:
            page = self._pages.get(key)
            if page is None:
                continue
            first = _first(key)
            held = range(first, first + len(page.lengths) * _STEP, _STEP)
            if not page.gone:
                numbers.extend(held)
                places.extend(page.places)
                lengths.extend(page.lengths)
                continue
            for number, place, length in zip(held, page.places, page.lengths, strict=True):
                if length:
                    numbers.append(number)
                    places.append(place)
                    lengths.append(length)
        for number in loose:
            if (found := self._loose.get(number)) is not None:
                numbers.append(number)
                places.append(found[0])
                lengths.append(found[1])
        return _bytes(numbers), _bytes(places), _bytes(lengths)

    def load(self, columns: Columns) -> None:
        """Take in what `columns` gave."""
        numbers, places = _array(_PLACE, columns[0]), _array(_PLACE, columns[1])
        lengths = _array(_LENGTH, columns[2])
        at = 0
        while at < len(numbers):
            count = self._whole_page(numbers, at)
            if count:
                page = self._pages[_key(numbers[at])] = _Page()
                page.places = places[at : at + count]
                page.lengths = lengths[at : at + count]
            else:
                place = places[at]
                self.set(numbers[at], place >> _OFFSET_BITS, place & _OFFSET_MASK, lengths[at])
            at += count or 1
        self._next = _NONE

    def _whole_page(self, numbers: array[int], at: int) -> int:
        """Return how many numbers from there on are a page's first ones; 0 if too few, or taken."""
        first = numbers[at]
        if first & _IS_INDEX_0 or _key(first) in self._pages:
            return 0
        count = min(_PAGE_SIZE, len(numbers) - at)
        while numbers[at + count - 1] != first + (count - 1) * _STEP:
            count //= 2
        return count if count > _SPARSE else 0

    def __len__(self) -> int:
        return len(self._loose) + sum(map(len, self._pages.values()))


def _position(place: int, length: int) -> Position:
    return Position(place >> _OFFSET_BITS, place & _OFFSET_MASK, length)


def columns_of(rows: Iterable[tuple[int, int, int, int]]) -> Columns:
    """Return (number, segment, offset, length) of values as columns."""
    numbers, places, lengths = array(_PLACE), array(_PLACE), array(_LENGTH)
    for number, segment, offset, length in rows:
        numbers.append(number)
        places.append(segment << _OFFSET_BITS | offset)
        lengths.append(length)
    return _bytes(numbers), _bytes(places), _bytes(lengths)


def rows_of(columns: Columns) -> Iterator[tuple[int, int, int, int]]:
    """Return the rows of columns."""
    numbers, places = _array(_PLACE, columns[0]), _array(_PLACE, columns[1])
    for number, place, length in zip(numbers, places, _array(_LENGTH, columns[2]), strict=True):
        yield number, place >> _OFFSET_BITS, place & _OFFSET_MASK, length


def _first(key: int) -> int:
    """Return the first number of a page."""
    return key >> _COUNT_SHIFT << _PAGE_SHIFT + _COUNT_SHIFT | key & _TAG_MASK


def _key(number: int) -> int:
    """Return which page a number is on: the high bits of the count, and the shard."""
    return number >> _PAGE_SHIFT + _COUNT_SHIFT << _COUNT_SHIFT | number & _TAG_MASK


def _index(number: int) -> int:
    """Return where on its page a number is."""
    return number >> _COUNT_SHIFT & _INDEX_MASK


def _bytes(column: array[int]) -> bytes:
    if sys.byteorder != "little":
        column.byteswap()
    return column.tobytes()


def _array(kind: str, data: bytes) -> array[int]:
    column = array(kind)
    column.frombytes(data)
    if sys.byteorder != "little":
        column.byteswap()
    return column
