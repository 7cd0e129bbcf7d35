"""Honest requests beside 2,000 connections that send their head byte by byte: their p99 may at most double.

Two intakes on one Kafka, one of them besieged, the other one in the next round. Honest requests go to both in turn, so that what else
the machine does meets both alike. The intake ends a slow connection after five seconds; its client opens the next at once, so that 2,000
are always open. An honest request has a connection of its own and comes at a fixed rate, and its time counts from when it was due: a
server that stops is not asked less.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import uvloop

from bench.http import single_request, wait_for
from bench.workload import configure
from pipeline.intake.connection_state import HEADER_SECONDS
from pipeline.kafka.embedded.broker import free_port

SLOW = 2000
_PER_SECOND = 200
_SECONDS = 10.0
_BYTE_SECONDS = 1.0
_HEAD = b"POST /track HTTP/1.1\r\nHost: bench\r\nUser-Agent: slow"
_ANSWER_BYTES = 65_536


class Waits(NamedTuple):
    """Milliseconds from when a request was due to its answer."""

    p50: float
    p99: float


async def _send_honest(ports: list[int], request: bytes) -> list[Waits]:
    """One by port. Raises RuntimeError when a request is not answered with 204."""
    waits: dict[int, list[float]] = {port: [] for port in ports}

    async def one(port: int, due: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read(_ANSWER_BYTES)
        waits[port].append((time.monotonic() - due) * 1e3)
        writer.close()
        if not answer.startswith(b"HTTP/1.1 204"):
            raise RuntimeError(f"an honest request was answered {answer[:60]!r}")

    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(round(_PER_SECOND * _SECONDS) * len(ports)):
            due = began + number / _PER_SECOND / len(ports)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.create_task(one(ports[number % len(ports)], due))
    return [Waits(float(np.percentile(found, 50)), float(np.percentile(found, 99))) for found in waits.values()]


async def _send_slowly(port: int) -> None:
    """Keep `SLOW` connections open until killed; says so when all of them are."""
    missing = SLOW
    full = asyncio.Event()

    async def one(number: int) -> None:
        nonlocal missing
        await asyncio.sleep(number / SLOW * HEADER_SECONDS)  # so that they end one by one, too
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                missing -= 1
                if not missing:
                    full.set()
                try:
                    for place in range(len(_HEAD)):
                        writer.write(_HEAD[place : place + 1])
                        try:
                            if not await asyncio.wait_for(reader.read(1), _BYTE_SECONDS):
                                break
                        except TimeoutError:
                            pass
                finally:
                    missing += 1
                    writer.close()
            except OSError:
                await asyncio.sleep(_BYTE_SECONDS)

    async with asyncio.TaskGroup() as tasks:
        for number in range(SLOW):
            tasks.create_task(one(number))
        await full.wait()
        print("open", flush=True)


def _honest(ports: list[int], request: Path) -> list[Waits]:
    command = [sys.executable, "-m", "bench.slow_clients", "honest", str(request), *map(str, ports)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120).stdout
    return [Waits(*waits) for waits in json.loads(found)]


@contextmanager
def _besieged(port: int) -> Iterator[None]:
    slow = subprocess.Popen([sys.executable, "-m", "bench.slow_clients", "slow", str(port)], stdout=subprocess.PIPE)
    try:
        assert slow.stdout is not None
        assert slow.stdout.readline() == b"open\n"
        yield
    finally:
        slow.kill()
        slow.wait()


@contextmanager
def _intake(folder: Path, servers: str) -> Iterator[int]:
    port = free_port()
    addresses = {name: {"listen": f"127.0.0.1:{at}"} for name, at in (("intake", port), ("admin", free_port()))}
    file, _ = configure(folder, servers, f"slow-clients-{port}-", **addresses)
    with (folder / "slow-clients.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "intake", "-c", str(file)], stdin=subprocess.DEVNULL, stderr=log
        )
    try:
        wait_for(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


def measure_slow_clients(folder: Path, servers: str, rounds: int) -> tuple[list[Waits], list[Waits]]:
    """Without and with the slow connections, by round."""
    request = folder / "honest.http"
    request.write_bytes(single_request())
    without, beside = [], []
    with _intake(folder, servers) as first, _intake(folder, servers) as second:
        _honest([first, second], request)  # warm
        for number in range(rounds):
            quiet, besieged = (first, second) if number % 2 else (second, first)
            with _besieged(besieged):
                found = _honest([quiet, besieged], request)
            without.append(found[0])
            beside.append(found[1])
    return without, beside


def told(without: list[Waits], beside: list[Waits]) -> str:
    """Round by round, and the medians."""
    lines = [
        f"round {number + 1}: p99 {alone.p99:.1f} ms, beside {SLOW} slow connections {among.p99:.1f} ms; "
        f"p50 {alone.p50:.1f} and {among.p50:.1f} ms"
        for number, (alone, among) in enumerate(zip(without, beside, strict=True))
    ]
    first, second = (statistics.median(waits.p99 for waits in found) for found in (without, beside))
    ratio = statistics.median(among.p99 / alone.p99 for alone, among in zip(without, beside, strict=True))
    return "\n".join(
        [
            *lines,
            f"{_PER_SECOND} honest requests/s to each of two intakes, medians of {len(lines)} rounds: p99 {first:.1f} ms, beside "
            f"{SLOW} slow connections {second:.1f} ms; within a round {ratio:.2f} times (goal 2)",
        ]
    )


if __name__ == "__main__":
    if sys.argv[1] == "honest":
        print(json.dumps(uvloop.run(_send_honest([*map(int, sys.argv[3:])], Path(sys.argv[2]).read_bytes()))))
    else:
        uvloop.run(_send_slowly(int(sys.argv[2])))
