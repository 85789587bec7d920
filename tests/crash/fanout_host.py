"""The program that test_fanout_sigkill.py starts: hosts a store, and kills at points it is told.

Arguments: the directory, and points as JSON. Each line that it prints is JSON. A point whose
victim is the host is its last.
"""

from __future__ import annotations

import json
import sys

import shardflow as sf
from support.killing import SHARDS, Point, Scene, Trap, kill, problems_of
from support.processes import eventually


def tell(**line: object) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    path, given = sys.argv[1:]
    points = [Point(*fields) for fields in json.loads(given)]
    with sf.open(path, shards=SHARDS) as store:
        tell(shards=[told["pid"] for told in store.processes()])
        victim = ""
        trap = Trap(lambda addressee: kill(store, victim, addressee))
        played = []
        for point in points:
            store.stats()  # All shards are there again, and their pids are known.
            scene = Scene(store, point)
            scene.prepare()
            victim = point.victim
            trap.set(point)
            told = scene.act()
            eventually(lambda: trap.has_sprung, f"nothing comes to {point.name}")
            tell(point=point.name, told=told)
            played.append((scene, told))
        for scene, told in played:
            scene.check(told)
        tell(problems=problems_of(store))


if __name__ == "__main__":
    main()
