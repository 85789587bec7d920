"""The keydir against a dict, and what it keeps of values that are gone."""

from __future__ import annotations

from random import Random

from shardflow.flow.log.keydir import Keydir, columns_of, rows_of
from shardflow.flow.log.position import Position

SHARD = 3


def number_of(count: int, shard: int = SHARD) -> int:
    return count << 8 | shard


def assert_equal(keydir: Keydir, wanted: dict[int, Position]) -> None:
    assert len(keydir) == len(wanted)
    for number, position in wanted.items():
        assert keydir.get(number) == position


def test_it_does_what_a_dict_does() -> None:
    for seed in range(30):
        chance = Random(seed)
        keydir, wanted = Keydir(), dict[int, Position]()
        count = 1
        for _ in range(chance.randrange(3_000)):
            what = chance.random()
            if what < 0.6 or not wanted:
                # Numbers are given in order, but some are skipped, and the shards' are mixed.
                count += 1 if what < 0.55 else chance.randrange(600)
                number = number_of(count, SHARD if what < 0.5 else chance.randrange(3))
            else:
                number = chance.choice(list(wanted)) if what < 0.97 else number_of(10**9)
            if what < 0.6 or 0.9 < what < 0.95:
                place = chance.randrange(2**32), chance.randrange(2**32), 1 + int(what * 1e6)
                keydir.set(number, *place)
                wanted[number] = Position(*place)
            else:
                keydir.pop(number)
                wanted.pop(number, None)
                assert keydir.get(number) is None
        assert_equal(keydir, wanted)


def test_a_number_of_another_shard_is_not_there() -> None:
    keydir = Keydir()
    keydir.set(number_of(1), 1, 2, 3)
    assert keydir.get(number_of(1, SHARD + 1)) is None
    keydir.pop(number_of(1, SHARD + 1))
    assert keydir.get(number_of(1)) == Position(1, 2, 3)


def test_few_values_among_many_that_are_gone_take_no_more_than_a_dict_of_them() -> None:
    keydir = Keydir()
    for count in range(1, 100_000):
        keydir.set(number_of(count), 1, count, 10)
    for count in range(1, 100_000):
        if count % 1_000:
            keydir.pop(number_of(count))
    assert len(keydir) == 99
    assert len(keydir._pages) <= 2
    assert all(keydir.get(number_of(count)) for count in range(1_000, 100_000, 1_000))
    # What compaction moves it finds again.
    keydir.set(number_of(50_000), 2, 2, 2)
    assert keydir.get(number_of(50_000)) == Position(2, 2, 2)
    assert len(keydir) == 99


def test_values_that_go_before_the_next_one_comes_leave_nothing_behind() -> None:
    keydir = Keydir()
    for count in range(1, 10_000):
        keydir.set(number_of(count), 1, count, 10)
        if count % 100:
            assert (keydir.pop if count % 2 else keydir.take)(number_of(count))
    assert len(keydir) == 99
    assert len(keydir._pages) <= 2
    assert all(keydir.get(number_of(count)) for count in range(100, 10_000, 100))
    # A page that is left and filled again.
    keydir.set(number_of(300), 2, 2, 2)
    keydir.set(number_of(20_000), 2, 2, 2)
    assert keydir.get(number_of(300)) == Position(2, 2, 2)
    assert len(keydir) == 100


def test_what_its_columns_tell_makes_an_equal_one() -> None:
    for seed in range(20):
        chance = Random(seed)
        keydir, wanted = Keydir(), dict[int, Position]()
        for count in range(1, chance.randrange(2, 3_000)):
            number = number_of(count, SHARD if chance.random() < 0.9 else 1)
            place = chance.randrange(2**32), chance.randrange(2**32), 1 + chance.randrange(2**20)
            keydir.set(number, *place)
            wanted[number] = Position(*place)
        for number in list(wanted):
            # Some pages stay whole, some have gaps, and of some hardly anything is left.
            if chance.random() < (0.0, 0.5, 0.99)[(number >> 16) % 3]:
                keydir.pop(number)
                del wanted[number]
        other = Keydir()
        pages = keydir.pages()
        for at in range(0, len(pages), 3):
            other.load(keydir.columns(pages[at : at + 3], ()))
        other.load(keydir.columns((), keydir.loose()))
        assert_equal(other, wanted)
        # It goes on as the first one does.
        last = number_of(10**6)
        other.set(last, 1, 2, 3)
        assert_equal(other, wanted | {last: Position(1, 2, 3)})


def test_columns_are_rows() -> None:
    rows = [(number_of(count), count, 2**32 - count, 7) for count in range(1, 5)]
    assert list(rows_of(columns_of(rows))) == rows
