"""The service under load: 1 to 64 clients, and what it costs above tower and search.

A server of its own process is asked by clients in this one over kept connections. What tower and
search cost alone is measured in this process on the same queries, whose features are read before.

Letters: Q queries, M interests, D a vector.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from dsmoe_jax.serving import retriever as retriever_lib
from dsmoe_jax.serving import serve

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
_START = "import sys; from dsmoe_jax.serving import serve; sys.exit(serve.main(sys.argv[1:]))"
_HEAD = b"POST /v1/retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
# Queries that warm up, and those by which tower and search are timed.
_WARM, _ALONE = 100, 500


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this measurement's flags."""
    parser.add_argument("bundle", type=pathlib.Path, help="a folder made by dsmoe export")
    parser.add_argument("--requests", type=int, default=2000, help="of each number of clients")
    parser.add_argument("--scenario", default="", help="the first one; or all")
    parser.add_argument("--k", type=int, default=50)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Starts the server, measures, stops it."""
    retriever = retriever_lib.Retriever.load(options.bundle)
    scenario = options.scenario or retriever.scenarios[0]
    users = retriever.encoder.known_users()[:: max(1, len(retriever.encoder.users) // 5000)]
    bodies = [
        json.dumps({"users": [{"user_id": user}], "scenario": scenario, "k": options.k}).encode()
        for user in users
    ]
    with serve.limit_threads(1):
        alone_ms = time_alone(retriever, users[:_ALONE], scenario, options.k)
    rounds = []
    with _serve(options.bundle) as (pid, port):
        asyncio.run(_load(port, bodies, 1, _WARM))
        # With as many clients as there will be, since a batch's arrays stay with the process.
        asyncio.run(_load(port, bodies, max(CLIENTS), 10 * max(CLIENTS)))
        before_mb = _memory_mb(pid)
        for clients in CLIENTS:
            start_s, cpu_s = time.perf_counter(), _cpu_s(pid)
            latency_s, failures = asyncio.run(_load(port, bodies, clients, options.requests))
            cpu_s, seconds = _cpu_s(pid) - cpu_s, time.perf_counter() - start_s
            answered = len(latency_s)
            rounds.append(
                {
                    "clients": clients,
                    "per_s": answered / seconds,
                    "p50_ms": 1e3 * float(np.quantile(latency_s, 0.5)),
                    "p99_ms": 1e3 * float(np.quantile(latency_s, 0.99)),
                    "cpu_ms": 1e3 * cpu_s / answered,
                    "failures": failures,
                }
            )
        after_mb = _memory_mb(pid)
    return {
        "scenario": scenario,
        "k": options.k,
        "requests": options.requests,
        "tower_and_search_ms": alone_ms,
        "rounds": rounds,
        "memory_before_mb": before_mb,
        "memory_after_mb": after_mb,
    }


def time_alone(
    retriever: retriever_lib.Retriever, users: list[Any], scenario: str, k: int
) -> float:
    """CPU milliseconds of a query's tower and search, its features read before."""
    names = retriever.scenarios if scenario == retriever_lib.ALL else (scenario,)
    scenario_Q = np.array([retriever.scenarios.index(name) for name in names], np.int32)
    searchers = [retriever.searcher(name) for name in names]
    queries = []
    for user in users:
        encoded = retriever.encoder.encode({"user_id": [user]})
        read = encoded.read(np.zeros(len(names), int), scenario_Q)
        queries.append((read, encoded.seen(0)))
    start_s = time.process_time()
    for read, seen in queries:
        vector_QMD = retriever.user_tower(read, scenario_Q)
        for q, searcher in enumerate(searchers):
            searcher.search(vector_QMD[q : q + 1], k, removed=[seen])
    return 1e3 * (time.process_time() - start_s) / len(queries)


def describe(found: dict[str, Any]) -> list[str]:
    """Lines for a console."""
    alone_ms = found["tower_and_search_ms"]
    lines = [
        f"scenario {found['scenario']}, k {found['k']}, {found['requests']:,} requests each; tower "
        f"and search alone {alone_ms:.2f} ms CPU",
        "clients  requests/s   p50 ms   p99 ms  CPU ms  above tower and search  failures",
    ]
    for one in found["rounds"]:
        above_ms = one["cpu_ms"] - alone_ms
        lines.append(
            f"{one['clients']:7d}  {one['per_s']:10,.0f}  {one['p50_ms']:7.2f}  "
            f"{one['p99_ms']:7.2f}  {one['cpu_ms']:6.2f}  {above_ms:22.2f}  {one['failures']:8d}"
        )
    lines.append(
        f"memory of the server {found['memory_before_mb']:.0f} MB before, "
        f"{found['memory_after_mb']:.0f} MB after"
    )
    return lines


@contextlib.contextmanager
def _serve(bundle: pathlib.Path) -> Iterator[tuple[int, int]]:
    """A server of the bundle on any free port, stopped afterwards."""
    command = [sys.executable, "-c", _START, str(bundle), "--port", "0"]
    environment = {key: value for key, value in os.environ.items() if key != "DSMOE_TOKEN"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            line = server.stdout.readline() if server.stdout else ""
            if "http://" not in line:
                raise ValueError(f"{bundle}: expected a server of it, got none")
            yield server.pid, int(line.rpartition(":")[2].split()[0])
        finally:
            server.terminate()
            server.communicate()


def _cpu_s(pid: int) -> float:
    """CPU time of a process so far; Linux."""
    # The name of the program, in parentheses, may hold spaces.
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(pid: int) -> float:
    """Resident memory of a process; Linux."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def _load(
    port: int, bodies: list[bytes], clients: int, requests: int
) -> tuple[list[float], int]:
    """Seconds of every request, and how many failed; each client asks when it is answered."""
    latency_s: list[float] = []
    statuses: list[bytes] = []

    async def ask(first: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for n in range(first, requests, clients):
            body = bodies[n % len(bodies)]
            start_s = time.perf_counter()
            writer.write(_HEAD % (len(body), body))
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split()[0])
            await reader.readexactly(length)
            latency_s.append(time.perf_counter() - start_s)
            statuses.append(head.split()[1])
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*[ask(n) for n in range(clients)])
    return latency_s, sum(status != b"200" for status in statuses)
