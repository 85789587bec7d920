"""User values to bytes and back: payloads, results, errors, named values. Never pickle.

Built in: None, bool, int of 64 bits, float, str, bytes, list, dict (keys str, int or bytes) and
aware datetime, as MessagePack; a tuple comes back as a list, a bytearray as bytes. Everything else
is for a `Codec`, whose bytes are marked, so that both kinds can be mixed in one store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from struct import Struct as Layout
from typing import Any, Final, NoReturn, Protocol

import msgpack

from ..flow.errors import InvalidArgument
from ..flow.limits import MIB

INSTANT_EXTENSION: Final = 1
"""An aware datetime: microseconds since the epoch, then the UTC offset in microseconds."""
CODEC_EXTENSION: Final = 2
"""What a user's codec made; found only as the outermost value."""
PACKER_BYTES_MAX: Final = MIB
"""A thread's packer that grew past this is dropped: its buffer never shrinks by itself."""
DEPTH_MAX: Final = 200
"""Containers inside each other; far below what the readers of the format bear."""

_INSTANT: Final = Layout(">qq")
_EPOCH: Final = datetime(1970, 1, 1)
_MICROSECOND: Final = timedelta(microseconds=1)
_KEYS: Final = frozenset((str, int, bytes))
_LEAVES: Final = frozenset((type(None), bool, int, float, str, bytes, bytearray))
_INT_TOO_LARGE: Final = "an int fits 64 bits, from -2**63 to 2**64 - 1; give a larger one as a str"


class Codec(Protocol):
    """Makes bytes of any object and back, for values that the built-in encoding has no form for.

    A store that has one sends every value of its user through it; `decode` is handed exactly what
    `encode` returned, possibly years later and in another process.
    """

    def encode(self, obj: Any, /) -> bytes:
        """Return the bytes of a value."""
        ...

    def decode(self, data: bytes, /) -> Any:
        """Return the value of such bytes."""
        ...


def pack(value: Any, codec: Codec | None, max_bytes: int, name: str) -> bytes:
    """Return the bytes of a value, `name` being what an error calls it.

    Raises:
        InvalidArgument: if it is of a type that has no form, or larger than `max_bytes` packed.
    """
    if codec is not None:
        value = msgpack.ExtType(CODEC_EXTENSION, _encoded(value, codec, name))
    elif type(value) not in _LEAVES:
        _check(value, name, DEPTH_MAX)
    packer = _packer()
    try:
        data: bytes = packer.pack(value)
    except InvalidArgument as error:
        raise InvalidArgument(f"{name}: {error}", argument=name) from None
    except (OverflowError, TypeError, ValueError) as error:
        raise _unpackable(error, name) from error
    size = len(data)
    if size > PACKER_BYTES_MAX:
        del _local.packer
    if size > max_bytes:
        raise InvalidArgument(
            f"{name} is {size} bytes, more than the limit of {max_bytes}; store it elsewhere and "
            "keep a reference here, or raise max_value_bytes",
            argument=name,
            size=size,
            limit=max_bytes,
        )
    return data


def unpack(data: bytes, codec: Codec | None = None) -> Any:
    """Return the value of bytes that `pack` made.

    Raises:
        InvalidArgument: if they were made by a codec and none is given.
        ValueError: if they are not a value.
    """
    hook = _plain_extension if codec is None else partial(_extension, codec)
    return msgpack.unpackb(data, strict_map_key=False, ext_hook=hook, timestamp=3)


class _Local(threading.local):
    packer: msgpack.Packer


_local: Final = _Local()


def _packer() -> msgpack.Packer:
    """Return this thread's packer: reusing it saves a third of the time of a small value."""
    try:
        return _local.packer
    except AttributeError:
        _local.packer = msgpack.Packer(default=_special)
        return _local.packer


def _special(value: Any) -> msgpack.ExtType:
    """Return the form of what MessagePack has no type for; the packer calls it."""
    if isinstance(value, int):
        raise InvalidArgument(_INT_TOO_LARGE)
    if not isinstance(value, datetime):
        raise InvalidArgument(
            f"a value of type {type(value).__qualname__} has no stored form; make it plain data "
            "(None, bool, int, float, str, bytes, list, dict, aware datetime) or give a codec"
        )
    offset = value.utcoffset()
    if offset is None:
        raise InvalidArgument(
            f"the datetime {value!r} is naive; give it a time zone, for example "
            "value.replace(tzinfo=timezone.utc)"
        )
    # Wall time less offset as integers: datetime arithmetic would overflow near years 1 and 9999.
    local = (value.replace(tzinfo=None, fold=0) - _EPOCH) // _MICROSECOND
    offset_us = offset // _MICROSECOND
    return msgpack.ExtType(INSTANT_EXTENSION, _INSTANT.pack(local - offset_us, offset_us))


def _check(value: Any, name: str, depth_left: int) -> None:
    """Refuse, before packing, what would pack but not come back."""
    children: Collection[Any]
    if isinstance(value, dict):
        if not _KEYS.issuperset(map(type, value)):
            _check_keys(value, name)
        children = value.values()
    elif isinstance(value, (list, tuple)) and not isinstance(value, msgpack.ExtType):
        children = value
    elif isinstance(value, (msgpack.ExtType, msgpack.Timestamp)):
        raise InvalidArgument(
            f"{name}: a value of type {type(value).__qualname__} would be read back as another "
            "type; give its data as bytes, or an aware datetime",
            argument=name,
        )
    else:
        return
    if depth_left == 0:
        raise InvalidArgument(
            f"{name} is nested too deeply: at most {DEPTH_MAX} containers inside each other",
            argument=name,
        )
    # A leaf costs one look into a set, no call: most values are dicts of leaves.
    for child in children:
        if type(child) not in _LEAVES:
            _check(child, name, depth_left - 1)


def _check_keys(value: dict[Any, Any], name: str) -> None:
    for key in value:
        if isinstance(key, bool) or not isinstance(key, (str, int, bytes)):
            raise InvalidArgument(
                f"{name}: the keys of a dict are str, int or bytes; got {key!r} of type "
                f"{type(key).__qualname__}",
                argument=name,
            )


def _unpackable(error: Exception, name: str) -> InvalidArgument:
    text = str(error)
    if isinstance(error, OverflowError):
        text = _INT_TOO_LARGE
    elif isinstance(error, UnicodeError):
        text = f"a str has no UTF-8 form: {error}"
    return InvalidArgument(f"{name}: {text}", argument=name)


def _encoded(value: Any, codec: Codec, name: str) -> bytes:
    try:
        data: Any = codec.encode(value)
    except Exception as error:
        raise InvalidArgument(
            f"{name}: the codec cannot encode a value of type {type(value).__qualname__}: {error}",
            argument=name,
        ) from error
    if not isinstance(data, bytes):
        raise InvalidArgument(
            f"{name}: the codec's encode returned {type(data).__qualname__} instead of bytes",
            argument=name,
        )
    return data


def _plain_extension(code: int, data: bytes) -> Any:
    return _EXTENSIONS.get(code, partial(_no_extension, code))(data)


def _extension(codec: Codec, code: int, data: bytes) -> Any:
    return codec.decode(data) if code == CODEC_EXTENSION else _plain_extension(code, data)


def _instant(data: bytes) -> datetime:
    at_us, offset_us = _INSTANT.unpack(data)
    zone = timezone(timedelta(microseconds=offset_us)) if offset_us else UTC
    return (_EPOCH + timedelta(microseconds=at_us + offset_us)).replace(tzinfo=zone)


def _no_codec(data: bytes) -> NoReturn:
    raise InvalidArgument(
        "this value was written with a codec; open the store with the same codec",
        argument="codec",
    )


def _no_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"the value holds the unknown extension type {code}")


_EXTENSIONS: Final[dict[int, Callable[[bytes], Any]]] = {
    INSTANT_EXTENSION: _instant,
    CODEC_EXTENSION: _no_codec,
}
