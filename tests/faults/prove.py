"""`make prove`: checks the delivery guarantee under faults, and that the checker detects bugs.

python -m tests.faults.prove                 everything (several hours: README.md)
python -m tests.faults.prove --short         a seeded run of about five minutes, as in CI
python -m tests.faults.prove --faults route-kill=20,zombie=2 --rate 600 --seed 7
python -m tests.faults.prove --deliver-kills 20
python -m tests.faults.prove --outages 60    Kafka away, reject and spill, with and without kill -9 of the intake
python -m tests.faults.prove --poison 10000
python -m tests.faults.prove --stalled-webhook
python -m tests.faults.prove --stops 25      stop signals at moments spread over the start of every role
python -m tests.faults.prove --broker-restarts 20 --full-disks 5   no worker may end (--slow-broker 300: nor with 2 s per commit)
python -m tests.faults.prove --fuzz 1000000  bodies that no client should send, through the intake's protocol
python -m tests.faults.prove --fuzz-route 10000  batches of hostile hits, through the route role without a broker
python -m tests.faults.prove --strangers 1800  hostile clients at all doors of the running product, beside a regular sender
python -m tests.faults.prove --mutants       every mutant of the core must be caught
python -m tests.faults.prove --soak 7200     weeks of ageing in two hours
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.config.models import Config
from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded.broker import free_port
from tests.bigquery import running_bigquery
from tests.buckets import new_bucket, running_s3
from tests.clickhouse import running_clickhouse
from tests.faults.brokers import prove_brokers
from tests.faults.delivering import MAX_IN_FLIGHT, Backends, connections, run_deliver_kills, start_fault_server
from tests.faults.fuzz import prove_fuzz
from tests.faults.fuzz_route import prove_fuzz_route
from tests.faults.mutant import MUTANTS
from tests.faults.outage import prove_outage
from tests.faults.poison import CONNECTION, run_poison
from tests.faults.run import Plan, Report, Run
from tests.faults.slow_broker import prove_slow_broker
from tests.faults.soak.run import SoakPlan, prove_soak
from tests.faults.stalled import receivers, run_stalled_webhook, stalled_connections
from tests.faults.stops import prove_stops
from tests.faults.strangers import prove_strangers
from tests.postgres import new_database, running_postgres

RECOVERY_SECONDS = 15.0
CULPRITS = [name for name in MUTANTS if name != "chaos"] + ["textbook"]
"""Mutants that the checker must catch; `chaos` is not a bug."""

SHORT = "route-kill=8,rebalance=4,broker-kill=2,intake-kill=1,zombie=1"
FULL = "route-kill=200,rebalance=50,broker-kill=20,intake-kill=10,zombie=10"
LEADERS = "leader-loss=10"
STRANGERS_SECONDS = 1800.0
SOAK_SECONDS, SHORT_SOAK_SECONDS, LONG_SOAK_SECONDS = 7200.0, 100.0, 1200.0
_AWAY = (5.0, 60.0)
_BROKERS_RATE, _SLOW_RATE = 100.0, 300.0


def plan_of(text: str, seed: int) -> list[str]:
    """Return the faults of `name=count,...` as a shuffled list."""
    faults = []
    for part in text.split(","):
        name, _, count = part.partition("=")
        faults += [name] * int(count or 1)
    random.Random(seed).shuffle(faults)
    return faults


def told(text: str) -> None:
    """Print progress to stderr."""
    print(f"  {text}", file=sys.stderr, flush=True)


def begun(plan: Plan) -> Run:
    """Return a run that prints its progress to stderr."""
    return Run(plan, told)


def show(title: str, plan: Plan, report: Report, seconds: float) -> None:
    """Print the result of a run."""
    answers = ", ".join(f"{count} x {status or 'none'}" for status, count in sorted(report.answers.items()))
    print(f"{title} (seed {plan.seed}, {seconds:.0f} s): {len(plan.faults)} faults at {plan.rate:.0f} hits/s")
    print(f"  {report.hits} hits, {report.per_second:.0f} per second; answers {answers}")
    print(f"  {report.aborted_records} records of aborted transactions")
    print(f"  longest way from 204 to a reader {report.longest_stall:.1f} s")
    print(f"  {report.verdict}")
    for kind in report.verdict.kinds:
        print(f"    {kind}: {getattr(report.verdict, kind)[:5]}")
    for reason in report.inconclusive:
        print(f"  INCONCLUSIVE {reason}")
    sys.stdout.flush()


def prove(title: str, plan: Plan, longest_stall: float | None = None) -> bool:
    """Run `plan` and return whether the guarantee held."""
    began = time.monotonic()
    run = begun(plan)
    try:
        report = asyncio.run(run.execute())
    except AssertionError as error:
        print(f"{title} (seed {plan.seed}, {time.monotonic() - began:.0f} s)\n  BROKEN OFF {error}")
        print(run.last_lines(), flush=True)
        return False
    show(title, plan, report, time.monotonic() - began)
    kept = report.kept
    if longest_stall is not None and report.longest_stall > longest_stall:
        print(f"  TOO SLOW: a hit waited {report.longest_stall:.1f} s, {longest_stall:.0f} are allowed")
        kept = False
    if kept:
        run.forget()
        print("  kept")
    else:
        print(f"  BROKEN; logs are in {run.folder}")
    return kept


def prove_deliver_kills(kills: int, rate: int, seed: int) -> bool:
    """Return whether tables and files hold each hit exactly once, and the webhook got every hit."""
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="hitrouter-prove-") as name,
        running_postgres(Path(name)) as postgres,
        running_s3() as s3,
        running_clickhouse(Path(name)) as clickhouse,
        running_bigquery() as bigquery,
    ):
        folder = Path(name)
        broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", folder / "kafka")
        broker.start()
        server, stop = start_fault_server()
        try:
            backends = Backends(server, new_database(postgres, "prove"), clickhouse, new_bucket(s3, "prove"), bigquery)
            config = Config.model_validate(
                {
                    "kafka": {"bootstrap_servers": broker.bootstrap_servers},
                    "projects": {"shop": {}},
                    "connections": connections(backends, folder),
                }
            )
            report = run_deliver_kills(config, backends, folder, kills, rate, seed, told)
        finally:
            stop()
            broker.stop()
    print(f"deliver kills (seed {seed}, {time.monotonic() - began:.0f} s): {kills} kills at {rate} hits/s")
    print(f"  {report.hits} hits; {report.repeats} requests came again, {kills * MAX_IN_FLIGHT} may")
    print("\n".join(f"  {problem}" for problem in report.problems) or "  kept", flush=True)
    return not report.problems


def prove_outages(seconds: float, rate: float) -> bool:
    """Return whether no hit with a 204 was lost while Kafka was away, for `reject` and `spill`, with and without a killed intake."""
    kept = True
    for on_failure in ("reject", "spill"):
        for kill in (False, True):
            kept &= prove_outage(on_failure, kill, seconds, rate, told)
    return kept


def prove_stalled_webhook(rate: int, backlog: int, phase_seconds: float) -> bool:
    """Return whether a dead webhook does not slow nine others, and its backlog later arrives at five times the live rate."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hitrouter-prove-") as name, receivers(10) as hooks:
        folder = Path(name)
        broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", folder / "kafka")
        broker.start()
        try:
            config = Config.model_validate(
                {
                    "kafka": {"bootstrap_servers": broker.bootstrap_servers},
                    "projects": {"shop": {}},
                    "connections": stalled_connections(hooks, "10s"),
                }
            )
            report = run_stalled_webhook(config, hooks, folder, rate, backlog, phase_seconds, told)
        finally:
            broker.stop()
    if report.during_p99_ms > report.before_p99_ms + 100:
        report.problems.append("the others' p99 rose by more than 100 ms")
    if report.recovered_per_second < 5 * rate:
        report.problems.append("the backlog arrived at less than five times the live rate")
    if report.memory_most_mb > report.memory_before_mb * 1.5:
        report.problems.append("memory is not flat")
    print(
        f"stalled webhook ({time.monotonic() - began:.0f} s): ten at {rate} hits/s each, one dead, {backlog} hits wait"
    )
    print(
        f"  the nine's p99, routed to received: {report.before_p99_ms:.0f} ms before, {report.during_p99_ms:.0f} ms during"
    )
    print(
        f"  idle {report.idle_after_recovery_seconds:.1f} s after it was back, then {report.recovered_per_second:.0f} hits/s"
    )
    print(f"  memory of the deliverer {report.memory_before_mb:.0f} MB before, {report.memory_most_mb:.0f} MB at most")
    print("\n".join(f"  {problem}" for problem in report.problems) or "  kept", flush=True)
    return not report.problems


def prove_poison(poison: int, hits: int) -> bool:
    """Return whether poison hits do not affect good ones, and arrive after the fix."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hitrouter-prove-") as name:
        broker = EmbeddedBroker(f"127.0.0.1:{free_port()}", Path(name) / "kafka")
        broker.start()
        server, stop = start_fault_server()
        try:
            webhook = {"destination": "Webhook", "settings": {"url": server.url}, "delivery": {"allow_private": True}}
            config = Config.model_validate(
                {
                    "kafka": {"bootstrap_servers": broker.bootstrap_servers},
                    "projects": {"shop": {}},
                    "connections": {CONNECTION: webhook},
                }
            )
            report = run_poison(config, server, Path(name), poison, hits, told)
        finally:
            stop()
            broker.stop()
    print(f"poison ({time.monotonic() - began:.0f} s): {poison} among {hits} hits; dead letters {dict(report.letters)}")
    print("\n".join(f"  {problem}" for problem in report.problems) or "  kept", flush=True)
    return not report.problems


def prove_ageing(seconds: float, seed: int) -> bool:
    """Return whether each hit of a soak was delivered, dead or expired, and counted, and no worker needed manual action."""
    plan = (
        SoakPlan(seconds, seed) if seconds >= LONG_SOAK_SECONDS else SoakPlan(seconds, seed, retention=60, pause=(1, 5))
    )
    return prove_soak(plan, told)


def prove_short(seed: int, rate: float) -> bool:
    """Return whether the guarantee held in a seeded run of faults and in a short soak. Both run at once: a soak mostly waits."""
    ageing = [sys.executable, "-m", "tests.faults.prove", "--soak", str(SHORT_SOAK_SECONDS), "--seed", str(seed)]
    with subprocess.Popen(ageing, stdout=subprocess.PIPE, text=True) as soak:
        kept = prove("short proof", Plan(plan_of(SHORT, seed), rate, seed))
        printed, _ = soak.communicate()
    print(printed, end="", flush=True)
    return kept and soak.returncode == 0


def lost_or_doubled_deliveries(report: Report) -> bool:
    """Return whether a hit was lost or doubled on a deliveries topic."""
    return any(not found.startswith("dead letters") for found in report.verdict.lost + report.verdict.doubled)


def hunt(names: list[str], seed: int, rate: float) -> bool:
    """Return whether the checker caught every mutant."""
    survivors = []
    for name in names:
        began = time.monotonic()
        faults = MUTANTS[name].faults if name in MUTANTS else "route-kill=4"
        # Long enough for some dozen transactions before each fault.
        plan = Plan(plan_of(faults, seed), rate, seed, mutant=name, pause=(5.0, 7.0))
        run = begun(plan)
        try:
            report = asyncio.run(run.execute())
            run.forget()
            caught = ", ".join(report.verdict.kinds)
            if name == "textbook" and not lost_or_doubled_deliveries(report):
                caught = ""  # without a ledger and dead letters the verdict always has other errors
        except AssertionError as error:
            caught = str(error)
        print(
            f"mutant {name} ({time.monotonic() - began:.0f} s): {'caught: ' + caught if caught else 'SURVIVED'}",
            flush=True,
        )
        if not caught:
            survivors.append(name)
    return not survivors


def main() -> int:
    """Return 0 if the guarantee held everywhere and every mutant was caught, otherwise 1."""
    parser = argparse.ArgumentParser(prog="prove", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--faults", help="name=count,...")
    parser.add_argument("--mutants", nargs="*", metavar="NAME")
    parser.add_argument("--seed", type=int, default=20261124)
    parser.add_argument("--rate", type=float, default=600.0)
    parser.add_argument("--deliver-kills", type=int, metavar="COUNT")
    parser.add_argument("--outages", type=float, metavar="SECONDS")
    parser.add_argument("--poison", type=int, metavar="COUNT", help="among ten times as many hits")
    parser.add_argument("--stalled-webhook", action="store_true")
    parser.add_argument("--backlog", type=int, default=72_000, help="of the dead webhook: an hour of 20 hits/s")
    parser.add_argument("--phase-seconds", type=float, default=60.0)
    parser.add_argument("--fuzz", type=int, metavar="COUNT")
    parser.add_argument("--fuzz-route", type=int, metavar="COUNT")
    parser.add_argument("--stops", type=int, metavar="COUNT", help="moments for each role")
    parser.add_argument("--broker-restarts", type=int, default=0, metavar="COUNT")
    parser.add_argument(
        "--full-disks", type=int, default=0, metavar="COUNT", help="of the broker, and as many of a sink"
    )
    parser.add_argument(
        "--away", type=float, nargs=2, default=_AWAY, metavar="SECONDS", help="the broker, least and most"
    )
    parser.add_argument("--slow-broker", type=float, metavar="SECONDS")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--strangers", type=float, metavar="SECONDS")
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    options = parser.parse_args()
    seed, rate = options.seed, options.rate
    if options.mutants is not None:
        return 0 if hunt(options.mutants or [*CULPRITS], seed, min(rate, 300.0)) else 1
    if options.outages:
        return 0 if prove_outages(options.outages, min(rate, 500.0)) else 1
    if options.deliver_kills:
        return 0 if prove_deliver_kills(options.deliver_kills, min(round(rate), 300), seed) else 1
    if options.stops:
        return 0 if prove_stops(options.stops, seed) else 1
    if options.broker_restarts or options.full_disks:
        counts = (options.broker_restarts, options.full_disks, options.full_disks)
        return 0 if prove_brokers(*counts, (options.away[0], options.away[1]), min(rate, _BROKERS_RATE), seed) else 1
    if options.slow_broker:
        return 0 if prove_slow_broker(options.slow_broker, min(rate, _SLOW_RATE), seed) else 1
    if options.fuzz:
        return 0 if prove_fuzz(options.fuzz) else 1
    if options.fuzz_route:
        return 0 if prove_fuzz_route(options.fuzz_route) else 1
    if options.strangers:
        return 0 if prove_strangers(options.strangers, seed, told) else 1
    if options.poison:
        return 0 if prove_poison(options.poison, options.poison * 10) else 1
    if options.stalled_webhook:
        return 0 if prove_stalled_webhook(20, options.backlog, options.phase_seconds) else 1
    if options.soak:
        return 0 if prove_ageing(options.soak, seed) else 1
    if options.faults:
        plan = Plan(plan_of(options.faults, seed), rate, seed, options.nodes, pause=(0.2, 1.2))
        return 0 if prove("chosen faults", plan) else 1
    if options.short:
        return 0 if prove_short(seed, min(rate, 300.0)) else 1
    # The pause is longer than a recovery: otherwise the next kill hits a worker that has not routed a hit yet.
    kept = prove("route kills", Plan(plan_of("route-kill=10", seed), rate, seed, pause=(9.0, 11.0)), RECOVERY_SECONDS)
    kept &= prove("injected aborts", Plan(plan_of("route-kill=3", seed), rate, seed, mutant="chaos", pause=(4.0, 6.0)))
    kept &= prove("all faults on one node", Plan(plan_of(FULL, seed), rate, seed, pause=(0.2, 1.2)))
    kept &= prove("leader losses on three nodes", Plan(plan_of(LEADERS, seed), rate, seed, nodes=3))
    kept &= prove_deliver_kills(20, 300, seed)
    kept &= prove_outages(60.0, 500.0)
    kept &= prove_stops(25, seed)
    kept &= prove_brokers(20, 5, 5, _AWAY, _BROKERS_RATE, seed)
    kept &= prove_slow_broker(300.0, _SLOW_RATE, seed)
    kept &= prove_fuzz(1_000_000)
    kept &= prove_fuzz_route(10_000)
    kept &= prove_strangers(STRANGERS_SECONDS, seed, told)
    kept &= prove_poison(10_000, 100_000)
    kept &= prove_stalled_webhook(20, 72_000, 60.0)
    kept &= prove_ageing(SOAK_SECONDS, seed)
    kept &= hunt([*CULPRITS], seed, 300.0)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
