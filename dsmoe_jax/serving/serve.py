"""Command line of the service: `dsmoe serve BUNDLE`.

Owns flags, the refusal of an open door, what would make requests wait or a core spin, and a stop
that loses nothing.
"""

import argparse
import asyncio
import contextlib
import gc
import ipaddress
import os
import pathlib
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from dsmoe_jax import console, optional

TOKEN = "DSMOE_TOKEN"
# What the extra `serve` brings.
LIBRARIES = ("fastapi", "uvicorn", "prometheus_client", "msgspec", "threadpoolctl")
_EXAMPLE = """\
examples:
  dsmoe serve bundle
  DSMOE_TOKEN=secret dsmoe serve bundle --host 0.0.0.0
  curl -d '{"users": [{"user_id": 17}], "scenario": "all", "k": 10}' localhost:8000/v1/retrieve
"""
# How long connections may take to notice that they end, and requests to be answered, in seconds.
_DRAIN_S, _STOP_S = 0.25, 30


def main(argv: Sequence[str]) -> int:
    """Serves until it is told to stop; returns the exit status."""
    options = parse(argv)
    return console.exit_status(lambda: run(options))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="dsmoe serve",
        description="Answers queries over HTTP from a bundle.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder made by dsmoe export")
    parser.add_argument("--host", default="127.0.0.1", help="address (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any (%(default)s)")
    parser.add_argument(
        "--token_file",
        type=pathlib.Path,
        help=f"holds what requests must bring as Authorization: Bearer (or {TOKEN})",
    )
    for flag, kind, default, what in (
        ("--max_k", int, 1000, "items of a list"),
        ("--max_users", int, 1000, "users of a request"),
        ("--max_events", int, 10_000, "entries of a user's history"),
        ("--max_bytes", int, 4_000_000, "of a request's body"),
        ("--concurrency", int, 256, "requests at once; more get 503"),
        ("--timeout_s", float, 10.0, "seconds until a request is given up"),
        ("--recall_s", float, 300.0, "seconds between measurements of live recall; 0: at changes"),
        ("--threads", int, 1, "of a matrix product; more shorten long ones and spin between all"),
    ):
        parser.add_argument(flag, type=kind, default=default, help=f"{what} (%(default)s)")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> int:
    """Serves until it is told to stop.

    Raises:
      ValueError: In one line, on what cannot be served.
    """
    token = read_token(options.token_file)
    check_host(options.host, token)
    optional.require(*LIBRARIES, extra="serve", what="dsmoe serve: ")
    from dsmoe_jax.serving import live, service, wire

    for flag in ("max_k", "max_users", "max_events", "max_bytes", "concurrency", "timeout_s"):
        value = getattr(options, flag)
        if not value > 0:
            raise ValueError(f"--{flag}: expected more than 0, got {value}")
    limits = wire.Limits(
        k=options.max_k,
        users=options.max_users,
        events=options.max_events,
        bytes=options.max_bytes,
        waiting=options.concurrency,
        time_s=options.timeout_s,
    )
    if not 0 <= options.recall_s < threading.TIMEOUT_MAX:
        raise ValueError(f"--recall_s: expected seconds or 0, got {options.recall_s}")
    if options.threads < 1:
        raise ValueError(f"--threads: expected at least 1, got {options.threads}")
    with listen(options.host, options.port) as listening:
        served = service.Service(
            live.open_warm(options.bundle), token=token, limits=limits, recall_s=options.recall_s
        )
        try:
            with limit_threads(options.threads), _keep_from_collection():
                return _run(served, listening)
        finally:
            served.close()


def limit_threads(threads: int) -> contextlib.AbstractContextManager[Any]:
    """Lets NumPy's and FAISS's matrix products use so many threads.

    Those of a request take microseconds; a second thread then spends its time waiting for the next.
    """
    import threadpoolctl

    limit: contextlib.AbstractContextManager[Any] = threadpoolctl.threadpool_limits(threads, "blas")
    return limit


@contextlib.contextmanager
def _keep_from_collection() -> Iterator[None]:
    """Lets collections of garbage pass over what is there now.

    Modules and a bundle are some 200,000 objects; a walk over all stops every request, for 0.1 s.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def read_token(path: pathlib.Path | None) -> str | None:
    """The token, from a file or else the environment; None without.

    Raises:
      ValueError: When the file holds none, or one that no header can hold.
    """
    origin = str(path) if path else TOKEN
    token = path.read_text(encoding="utf-8").strip() if path else os.environ.get(TOKEN, "").strip()
    if path and not token:
        raise ValueError(f"{origin}: expected a token, got an empty file")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(f"{origin}: expected printable ASCII without spaces, got something else")
    return token or None


def check_host(host: str, token: str | None) -> None:
    """Refuses to let others in without a token.

    Raises:
      ValueError: When the address is not this machine's own and there is no token.
    """
    try:
        is_own = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_own = host == "localhost"
    if not is_own and not token:
        raise ValueError(
            f"--host {host}: expected a token where others can connect, got none; give "
            f"--token_file or {TOKEN}"
        )


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound before the bundle is read, so that a taken port is told at once.

    Raises:
      ValueError: When the port is none or taken, or the host is none of this machine's.
    """
    if not 0 <= port < 1 << 16:
        raise ValueError(f"--port: expected 0 to 65535, got {port}")
    try:
        [(*kind, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise ValueError(f"--host {host}: expected an address, got {error.strerror}") from None
    # asyncio sends small packets at once on sockets that say they are TCP's; on others it waits.
    with socket.socket(*kind) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
        except OSError as error:
            raise ValueError(
                f"--port {port}: expected a free port of {host}, got {error.strerror!r}"
            ) from None
        yield listening


def _run(served: Any, listening: socket.socket) -> int:
    import uvicorn

    class Server(uvicorn.Server):
        """Stops in the order in which clients lose nothing."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Both signals mean the same, and end the process by returning from `main`."""
            numbers = (signal.SIGINT, signal.SIGTERM)
            is_main = threading.current_thread() is threading.main_thread()
            before = {n: signal.signal(n, self.handle_exit) for n in numbers if is_main}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Says where it listens, once it does."""
            await super().startup(sockets)
            host, port = listening.getsockname()[:2]
            name = f"[{host}]" if ":" in host else host
            digest = served.live.current.digest[:12]
            print(f"bundle {digest} at http://{name}:{port} (Ctrl-C stops)", flush=True)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Connections end with their next answer; what was asked is answered."""
            for server in self.servers:
                server.close()
            served.is_stopping = True
            # A client that has just sent a request must not find its connection closed.
            await asyncio.sleep(_DRAIN_S)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        served.app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=_STOP_S,
    )
    Server(config).run(sockets=[listening])
    print("stopped", flush=True)
    return 0
