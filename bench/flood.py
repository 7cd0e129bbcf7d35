"""The median of one project's hits beside another's flood of gzip batches. Not part of `make bench`; run it by itself.

python -m bench.flood [--rounds N] [--other CHECKOUT]

Each round starts an intake on a real Kafka, sends one project's hits at a fixed rate, first alone, then beside connections that
each send the largest batch that the intake takes, as a few hundred bytes of gzip, again and again. With `--other` each round is
repeated with the code of another checkout, which the interpreter of this one runs.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.http import wait_for_yes
from bench.workload import configure
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded.broker import free_port
from tests.roles import free_admin_listen

CONNECTIONS = 16
_PER_SECOND = 40
_SECONDS = 6.0
_ROOT = Path(__file__).parent.parent
_BATCHES = ((5_000, 600), (5_000, 400), (2_500, 230), (2_500, 100))
"""Messages and bytes of the shared context, from the worst on; the first that is taken is sent."""


def _request(path: str, token: str, body: bytes, *headers: str) -> bytes:
    authorization = base64.b64encode(f"{token}:".encode()).decode()
    head = [f"POST {path} HTTP/1.1", "Host: bench", "Content-Type: application/json", *headers]
    head += [f"Authorization: Basic {authorization}", f"Content-Length: {len(body)}"]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def _hit(number: int) -> bytes:
    body = {"hitId": f"honest-{time.time_ns()}-{number}", "event": {"name": "E", "user": {"userId": "u"}}}
    return _request("/track", "shop-token", json.dumps(body).encode())


def _bomb(messages: int, context_bytes: int) -> bytes:
    message = {"type": "track", "event": "E", "userId": "u"}
    batch = {"batch": [message] * messages, "context": {"pad": "x" * context_bytes}}
    return _request("/v1/batch", "flood-token", gzip.compress(json.dumps(batch).encode()), "Content-Encoding: gzip")


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    _, found, length = head.lower().partition(b"content-length:")
    if found:
        await reader.readexactly(int(length.split(b"\r\n")[0]))
    return head[9:12]


async def _honest(port: int) -> list[float]:
    """Milliseconds from when each request was due to its answer."""
    waits = []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()
    for number in range(round(_PER_SECOND * _SECONDS)):
        due = began + number / _PER_SECOND
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        writer.write(_hit(number))
        status = await _answer(reader)
        waits.append((time.monotonic() - due) * 1e3)
        if status != b"204":
            raise RuntimeError(f"an honest request was answered {status!r}")
        if waits[-1] > 10_000:
            break
    writer.close()
    return waits


async def _flood(port: int) -> None:
    """Until killed; prints what was taken at the end of each second."""
    taken = 0

    async def one(request: bytes) -> None:
        nonlocal taken
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                while True:
                    writer.write(request)
                    taken += await _answer(reader) == b"200"
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.1)

    for batch in _BATCHES:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_bomb(*batch))
        if await _answer(reader) == b"200":
            break
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONNECTIONS):
            tasks.create_task(one(_bomb(*batch)))
        while True:
            await asyncio.sleep(1.0)
            print(batch[0] * taken, flush=True)


def _round(root: Path, folder: Path, servers: str) -> tuple[list[float], list[float], int]:
    port = free_port()
    file, _ = configure(
        *(folder, servers, f"flood-{port}-"),
        intake={"listen": f"127.0.0.1:{port}"},
        admin={"listen": free_admin_listen()},
        projects={"shop": {"tokens": ["shop-token"]}, "flood": {"tokens": ["flood-token"]}},
    )
    with (folder / "intake.log").open("ab") as log:
        command = [sys.executable, "-m", "pipeline", "intake", "-c", str(file)]
        intake = subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL, stderr=log)
    flood = None
    try:
        _wait_for(port)
        alone = asyncio.run(_honest(port))
        command = [sys.executable, "-m", "bench.flood", "--flood", str(port)]
        flood = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert flood.stdout is not None
        flood.stdout.readline()
        beside = asyncio.run(_honest(port))
        flood.kill()
        return alone, beside, int(flood.stdout.read().split()[-1])
    finally:
        for process in (flood, intake):
            if process is not None:
                process.kill()
                process.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            return wait_for_yes(port, _hit(0))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def main() -> None:
    """Print each round, and the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--flood", type=int)
    options = parser.parse_args()
    if options.flood:
        asyncio.run(_flood(options.flood))
    roots = [_ROOT] if options.other is None else [_ROOT, options.other.resolve()]
    found: dict[Path, list[tuple[float, float]]] = {root: [] for root in roots}
    with tempfile.TemporaryDirectory(prefix="hitrouter-bench-") as name:
        folder = Path(name)
        broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", folder / "kafka")
        broker.start()
        try:
            for number in range(options.rounds):
                for root in roots if number % 2 else roots[::-1]:
                    alone, beside, hits = _round(root, folder, broker.bootstrap_servers)
                    found[root].append((statistics.median(alone), statistics.median(beside)))
                    print(
                        f"round {number + 1}, {root}: median {found[root][-1][0]:.1f} ms alone, {found[root][-1][1]:.1f} ms "
                        f"beside the flood (worst {max(beside):.0f}), which stored {hits} hits",
                        flush=True,
                    )
        finally:
            broker.stop()
    for root, medians in found.items():
        first, second = (statistics.median(column) for column in zip(*medians, strict=True))
        ratio = statistics.median(beside / alone for alone, beside in medians)
        print(
            f"{root}: median {first:.1f} ms alone, {second:.1f} ms beside the flood; within a round {ratio:.1f} times"
        )


if __name__ == "__main__":
    main()
