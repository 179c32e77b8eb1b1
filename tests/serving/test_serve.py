"""The command `dsmoe serve`, in processes of its own: what it refuses, and how it stops."""

import contextlib
import gc
import http.client
import json
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import threadpoolctl

from dsmoe_jax.serving import serve
from tests.serving import small_bundle

START = "import sys; from dsmoe_jax.serving import serve; sys.exit(serve.main(sys.argv[1:]))"
CLIENTS = 6


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return small_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "a")


@pytest.fixture
def start(path):
    """Starts servers of the bundle; gives the process and its port once it answers."""
    started = []

    def run(*flags):
        process = subprocess.Popen(
            [sys.executable, "-c", START, str(path), "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=pathlib.Path(__file__).parents[2],
        )
        started.append(process)
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, process.stderr.read()
        return process, int(line.partition("127.0.0.1:")[2].split()[0])

    yield run
    for process in started:
        process.kill()
        process.communicate()


def ask(connection, n):
    body = json.dumps({"users": [{"user_id": n % 30 + 1}], "scenario": "all", "k": 20})
    connection.request("POST", "/v1/retrieve", body)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    return answer.status, len(found.get("lists", [])), answer.getheader("connection") == "close"


def test_sigterm_answers_all_that_was_asked(start):
    process, port = start()
    answered, failed = [], []
    is_flowing = threading.Event()

    def client(number):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        is_last = False
        with contextlib.closing(connection):
            while not is_last:
                try:
                    status, lists, is_last = ask(connection, number)
                except (OSError, http.client.HTTPException) as error:
                    failed.append(error)
                    return
                answered.append((status, lists))
                if len(answered) > 20 * CLIENTS:
                    is_flowing.set()

    threads = [threading.Thread(target=client, args=[n]) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    assert is_flowing.wait(120)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(120)
    assert process.wait(30) == 0
    assert failed == []
    assert set(answered) == {(200, 3)}
    assert (process.stdout.read(), process.stderr.read()) == ("stopped\n", "")
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", port).connect()


def test_ctrl_c_ends_with_one_line_and_an_idle_connection_keeps_nobody(start):
    process, port = start()
    idle = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    assert ask(idle, 1)[0] == 200
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert time.monotonic() - began < 20
    idle.close()
    assert (process.stdout.read(), process.stderr.read()) == ("stopped\n", "")


def test_flags_reach_the_service(start, tmp_path):
    token = tmp_path / "token"
    token.write_text(f"{small_bundle.TOKEN}\n")
    _, port = start("--token_file", str(token), "--max_k", "5", "--max_bytes", "500")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for headers, body, status in (
        ({}, '{"users": []}', 401),
        (small_bundle.BEARER, '{"users": [], "k": 5}', 200),
        (small_bundle.BEARER, '{"users": [], "k": 6}', 400),
        (small_bundle.BEARER, " " * 501, 413),
    ):
        connection.request("POST", "/v1/retrieve", body, headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
        assert answer.getheader("server") is None
    connection.close()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: expected a token where others can connect"),
        (["--host", "::"], "--host ::: expected a token where others can connect"),
        (["--host", "no.such.host.invalid"], "expected a token where others can connect"),
        (["--port", "70000"], "--port: expected 0 to 65535, got 70000"),
        (["--max_k", "0"], "--max_k: expected more than 0, got 0"),
        (["--concurrency", "0"], "--concurrency: expected more than 0, got 0"),
        (["--recall_s", "-1"], "--recall_s: expected seconds or 0, got -1.0"),
        (["--recall_s", "nan"], "--recall_s: expected seconds or 0, got nan"),
        (["--threads", "0"], "--threads: expected at least 1, got 0"),
        (["--token_file", "{empty}"], "expected a token, got an empty file"),
        (["--token_file", "{spaced}"], "expected printable ASCII without spaces"),
        (["--token_file", "{none}"], "No such file"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(
    path, tmp_path, capsys, monkeypatch, flags, told
):
    monkeypatch.delenv(serve.TOKEN, raising=False)
    names = {name: str(tmp_path / name) for name in ("empty", "spaced", "none")}
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "spaced").write_text("a b")
    flags = [flag.format(**names) for flag in flags]
    assert serve.main([str(path), "--port", "0", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error and error.count("\n") == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_products_have_as_many_threads_as_asked_and_collection_passes_over_what_stays(
    path, monkeypatch, threads
):
    def look(*_):
        found.append((gc.get_freeze_count(), count_threads()))
        return 0

    def count_threads():
        return {each["num_threads"] for each in threadpoolctl.threadpool_info() if is_blas(each)}

    def is_blas(library):
        return library["user_api"] == "blas"

    found, before = [], (gc.get_freeze_count(), count_threads())
    monkeypatch.setattr(serve, "_run", look)
    assert serve.main([str(path), "--port", "0", "--threads", str(threads)]) == 0
    [(frozen, counts)] = found
    assert frozen > 10_000 and counts == {threads}
    assert (gc.get_freeze_count(), count_threads()) == before


def test_a_folder_that_is_no_bundle_and_a_port_that_is_taken_are_told(path, tmp_path, capsys):
    assert serve.main([str(tmp_path), "--port", "0"]) == 2
    assert "expected a bundle with manifest.json, found none" in capsys.readouterr().err
    with serve.listen("127.0.0.1", 0) as taken:
        # Else asyncio leaves Nagle's algorithm on, and every answer waits 40 ms.
        assert taken.proto == socket.IPPROTO_TCP
        port = taken.getsockname()[1]
        taken.listen()
        assert serve.main([str(path), "--port", str(port)]) == 2
    assert f"--port {port}: expected a free port of 127.0.0.1, got 'Address" in (
        capsys.readouterr().err
    )


def test_a_missing_extra_is_one_line(path, capsys, monkeypatch):
    monkeypatch.setattr(serve.optional, "list_missing", lambda names: ["uvicorn"])
    assert serve.main([str(path)]) == 2
    assert capsys.readouterr().err == (
        "error: dsmoe serve: expected the library uvicorn, found none; pip install '.[serve]'\n"
    )


def test_the_token_comes_from_the_file_or_else_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(serve.TOKEN, "from-outside")
    assert serve.read_token(None) == "from-outside"
    (tmp_path / "token").write_text("from-file\n")
    assert serve.read_token(tmp_path / "token") == "from-file"
    monkeypatch.delenv(serve.TOKEN)
    assert serve.read_token(None) is None
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        serve.check_host(host, None)
    serve.check_host("0.0.0.0", "token")
