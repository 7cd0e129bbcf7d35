"""Restarts the broker and fills its disk and that of a sink, under load. No worker may end.

    python -m tests.faults.prove --broker-restarts 20 --full-disks 5

Every stored hit must be exactly once on its deliveries topics and in the files, and at least once at the webhook. `flow` is the
time from the recovery of the broker or disk to the arrival of the first hit accepted after it, at each end of the pipeline.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded.broker import free_port
from tests.faults.whole_pipeline import PATIENCE_SECONDS, Pipeline, Report, judge, keep_logs
from tests.roles import wait_until

FLOW_SECONDS = 15.0
_BROKER_DISK, _SINK_DISK = "3g", "512m"
"""The disk of the sink holds everything that a run writes: about 50 MB in twenty minutes at 100 hits/s."""
_DIES_WITHIN_SECONDS = 30.0
Kind = Literal["terminate", "kill", "broker-disk", "sink-disk"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault to inject; for `seconds` the broker is away or the disk full."""

    kind: Kind
    seconds: float


@dataclass(slots=True)
class Recovery:
    """When the broker or disk recovered (seconds since 1970), how long its start took, and the flow per end of the pipeline."""

    fault: Fault
    serving_at: float
    start_seconds: float
    flow: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        flow = ", ".join(f"{end} {seconds:.1f}" for end, seconds in self.flow.items())
        return (
            f"{self.fault.kind} {self.fault.seconds:.0f} s: start took {self.start_seconds:.1f} s; flow after {flow} s"
        )


@dataclass(slots=True)
class FaultsReport(Report):
    """A Report with recoveries. `skipped` are faults for which this user lacks the permission."""

    recoveries: list[Recovery] = field(default_factory=list)
    skipped: list[Fault] = field(default_factory=list)


def faults_of(restarts: int, broker_disks: int, sink_disks: int, away: tuple[float, float], seed: int) -> list[Fault]:
    """Return shuffled faults. Half of the restarts use SIGTERM, half SIGKILL; their durations are evenly spread over `away`."""
    draw = random.Random(seed)
    step = (away[1] - away[0]) / max(1, restarts - 1)
    faults = [Fault(("terminate", "kill")[n % 2], away[0] + n * step) for n in range(restarts)]  # type: ignore[arg-type]
    faults += [Fault("broker-disk", draw.uniform(5, 20)) for _ in range(broker_disks)]
    faults += [Fault("sink-disk", draw.uniform(5, 20)) for _ in range(sink_disks)]
    draw.shuffle(faults)
    return faults


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """Mount a tmpfs of `size` on `folder`. Yields False if this user lacks the permission."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},huge=never", "tmpfs", str(folder)], check=False
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk of `folder`. Remove the returned file to free it."""
    ballast = folder / "ballast"
    room = os.statvfs(folder)
    with ballast.open("wb", buffering=0) as stream, suppress(OSError):
        os.posix_fallocate(stream.fileno(), 0, room.f_bavail * room.f_frsize)
        stream.seek(0, os.SEEK_END)
        while True:
            stream.write(b"x" * 4096)
    return ballast


def hurt(pipeline: Pipeline, fault: Fault) -> Recovery:
    """Inject `fault`, end it after its time, and return after the recovery of the broker or disk."""
    broker, ballast = pipeline.broker, None
    if fault.kind == "sink-disk":
        ballast = fill(pipeline.files)
        time.sleep(fault.seconds)
        ballast.unlink()
        return Recovery(fault, time.time(), 0.0)
    if fault.kind == "broker-disk":
        ballast = fill(broker.node.data)
        assert broker.process is not None
        with suppress(subprocess.TimeoutExpired):
            broker.process.wait(_DIES_WITHIN_SECONDS)
        broker.kill()
    elif fault.kind == "kill":
        broker.kill()
    else:
        broker.stop()
    time.sleep(fault.seconds)
    if ballast is not None:
        ballast.unlink()
    began = time.monotonic()
    broker.start()
    return Recovery(fault, time.time(), time.monotonic() - began)


def run_faults(
    faults: Sequence[Fault], rate: float, seed: int, told: Callable[[str], None] = lambda text: None
) -> FaultsReport:
    """Inject all `faults`, each after the recovery from the one before."""
    report = FaultsReport()
    draw = random.Random(seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hitrouter-brokers-")))
        disks = [
            stack.enter_context(small_disk(folder / name, size))
            for name, size in (("kafka", _BROKER_DISK), ("files", _SINK_DISK))
        ]
        if not all(disks):
            report.skipped = [fault for fault in faults if fault.kind.endswith("disk")]
            faults = [fault for fault in faults if not fault.kind.endswith("disk")]
        broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", folder / "kafka")
        broker.start()
        stack.callback(broker.stop)
        pipeline = Pipeline(folder, broker, rate, seed)
        pipeline.start()
        stack.callback(pipeline.stop)
        for number, fault in enumerate(faults, 1):
            recovery = hurt(pipeline, fault)
            _await_flow(pipeline, recovery, report)
            report.recoveries.append(recovery)
            told(f"{number}/{len(faults)} {recovery}; {', '.join(pipeline.ended()) or 'no worker ended'}")
            with suppress(AssertionError):
                wait_until(pipeline.is_caught_up, "an empty backlog", PATIENCE_SECONDS, 1.0)
            time.sleep(draw.uniform(2.0, 6.0))
        judge(pipeline, report)
        if report.problems:
            keep_logs(folder, report)
    return report


def _await_flow(pipeline: Pipeline, recovery: Recovery, report: Report) -> None:
    try:
        wait_until(lambda: len(pipeline.flow_since(recovery.serving_at)) == 3, "flow", PATIENCE_SECONDS, 0.4)
    except AssertionError:
        report.problems.append(f"no flow within {PATIENCE_SECONDS:.0f} s after {recovery.fault}")
    recovery.flow = pipeline.flow_since(recovery.serving_at)
    if max(recovery.flow.values(), default=0.0) > FLOW_SECONDS:
        report.problems.append(f"{recovery}: {FLOW_SECONDS:.0f} s are allowed")


def prove_brokers(
    restarts: int, broker_disks: int, sink_disks: int, away: tuple[float, float], rate: float, seed: int
) -> bool:
    """Return whether the guarantee held."""
    began = time.monotonic()
    report = run_faults(faults_of(restarts, broker_disks, sink_disks, away, seed), rate, seed, _told)
    faults = f"{restarts} broker restarts, {broker_disks} full disks of the broker, {sink_disks} of a sink"
    report.show(f"{faults} (seed {seed}, {time.monotonic() - began:.0f} s) at {rate:.0f} hits/s")
    flows = sorted(max(recovery.flow.values()) for recovery in report.recoveries if recovery.flow)
    if flows:
        print(
            f"  flow after the broker or disk served again: median {flows[len(flows) // 2]:.1f} s, worst {flows[-1]:.1f} s"
        )
    for recovery in report.recoveries:
        print(f"    {recovery}")
    print(
        "\n".join(f"  SKIPPED, no right to mount a small disk: {fault}" for fault in report.skipped) or "", flush=True
    )
    return not report.problems


def _told(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
