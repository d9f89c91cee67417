"""Build five simulated cities on a local Dask cluster that loses a worker, and score a model on the fifth of them.

python tests/bench/bench_places.py FOLDER     cities of 3 km with 8 dates in two UTM zones, below FOLDER

Every step after the simulation is a command of docs/guides/places.md. Prints one line of JSON: seconds of each step,
patches, and the scores of the city that was held out.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import simulated_cities

from sgdata import files, output_names
from sgdata.builds import place_list

HELD_OUT = simulated_cities.CITIES[-1][0]
BUILD = ("--dates", "2019-04-01/2020-03-31", "--set", "patches.size=64", "--set", "patches.stride=32")
SPLIT = ("--set", "split.block_px=128", "--set", "split.gap_px=12")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", f"distributed.cli.{words[0]}", *words[1:], "--no-dashboard"]
    # The profiler of Dask may stop a worker for ever: see docs/guides/machines.md.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def call(program: str, *words: object, codes: tuple[int, ...] = (0, 3)) -> float:
    """Run a command, and return its seconds; 3 says that few dates left some pixels without a clear observation."""
    began = time.monotonic()
    command = [sys.executable, "-m", f"{program}.cli", *map(str, words)]
    done = subprocess.run(command, check=False, stdout=sys.stderr)
    assert done.returncode in codes, f"{program} {words[0]}: exit code {done.returncode}"
    return round(time.monotonic() - began, 1)


def build_on_cluster(table: Path, out: Path) -> float:
    """Build all places on two workers, of which one is killed while it stages scenes; return the seconds."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    with ExitStack() as stack:
        stack.enter_context(running("dask_scheduler", "--host", "127.0.0.1", "--port", port))
        worker = ("dask_worker", address, "--nthreads", "1", "--no-nanny", "--memory-limit", "0")
        workers = [stack.enter_context(running(*worker)) for _ in range(2)]

        def kill_one() -> None:
            while len(list(out.glob("*/.scratch/windows/*.json"))) < 10:
                time.sleep(0.05)
            workers[0].kill()

        threading.Thread(target=kill_one, daemon=True).start()
        took = call("sgdata", "build", "--places", table, "--out", out, "--cluster", address, *BUILD, *SPLIT)
        assert workers[0].poll() is not None, "no worker was killed"
        assert workers[1].poll() is None
    return took


def main(folder: Path) -> None:
    """Run all steps in a folder; finished ones are not repeated."""
    began = time.monotonic()
    table = simulated_cities.write(folder / "archives")
    seconds = {"simulate": round(time.monotonic() - began, 1)}
    cities, shards, run = folder / "cities", folder / "shards", folder / "run"
    seconds["build"] = build_on_cluster(table, cities)
    rows = files.read_plain(cities / place_list.SUMMARY)["places"]
    assert all(row["sha256"] for row in rows), rows
    seconds["shard"] = call("sgdata", "shard", "segmunich", "--source", cities, "--hold-out", HELD_OUT, "--out", shards)
    seconds["audit"] = call("sgdata", "audit", shards, "--out", folder / "audit")
    seconds["segment"] = call("sgmodel", "segment", "segment-demo-tiny", "--shards", shards, "--out", run,
                              "--set", "test_split=test", "--set", "training.epochs=6")  # fmt: skip
    results = files.read_plain(run / output_names.RESULTS)
    scored = {name: results["per_place"][HELD_OUT][name] for name in ("samples", "miou", "oa")}
    patches = {row["place"]: sum(row["patches"].values()) for row in rows}
    print(
        json.dumps(
            {"seconds": seconds, "patches": patches, HELD_OUT: scored, "miou_majority": results["miou_majority"]}
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
