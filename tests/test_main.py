"""The command line: what it accepts, what it refuses and how, how it ends."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dsmoe_jax import main
from dsmoe_jax.config import fingerprint, load, schema
from dsmoe_jax.run import run as whole_run
from dsmoe_jax.training import interrupt, loop

CONFIG = """
import dataclasses
from dsmoe_jax.config import schema, variants

@dataclasses.dataclass
class StubMatcher(schema.MatcherConfig):
    num_experts: int = 3
    rank: int = 4
    hidden: tuple[int, ...] = (8, 4)

def get_config(variant):
    chosen = variants.parse(variant, {"data": ("sample", "synthetic"), "cut": ("no_sap",)})
    return schema.Experiment(
        dataset="stub",
        data=schema.DataConfig(),
        model=StubMatcher(),
        teacher=schema.TeacherConfig(),
        variant=",".join(chosen.values()),
    )
"""


@pytest.fixture(autouse=True)
def stub_config(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration `stub.py` in the current folder, and no environment of other launchers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stub.py").write_text(CONFIG)
    for name in ("DSMOE_COORDINATOR", "DSMOE_NUM_PROCESSES", "DSMOE_PROCESS_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))


def parse(*arguments: str) -> main.Options:
    return main.parse(["main", *arguments])


def parse_error(*arguments: str) -> str:
    with pytest.raises(load.UsageError) as raised:
        parse(*arguments)
    return str(raised.value)


def test_help_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "dsmoe_jax.main", "--help"]
    root = pathlib.Path(main.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "dsmoe_jax" in imported
    heavy = {"jax", "flax", "orbax", "grain", "polars", "numpy", "absl", "ml_collections", "optax"}
    assert not {name.partition(".")[0] for name in imported} & heavy
    assert done.stdout == main.HELP


@pytest.mark.parametrize("command", main.PLAIN_MODULE_OF)
def test_flags_are_read_before_jax_is_imported(command: str) -> None:
    code = (
        "import atexit, sys\n"
        "from dsmoe_jax import main\n"
        "atexit.register(lambda: print(sorted({'jax', 'numpy', 'polars'} & set(sys.modules))))\n"
        "sys.exit(main.main(['dsmoe', *sys.argv[1:]]))"
    )
    root = pathlib.Path(main.__file__).parents[1]
    for flags, status in ((["--help"], 0), (["--no_such_flag"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", code, command, *flags], capture_output=True, text=True, cwd=root
        )
        assert (done.returncode, done.stdout.splitlines()[-1]) == (status, "[]"), done.stderr
        assert f"usage: dsmoe {command}" in done.stdout + done.stderr


@pytest.mark.parametrize("flag", ["--help", "-h", "-help", "--helpfull"])
def test_help_shows_examples_and_every_flag(flag: str, capsys: pytest.CaptureFixture) -> None:
    assert main.main(["main", "--config", "nowhere.py", flag]) == 0
    text = capsys.readouterr().out
    assert "dsmoe train --config kuairand:sample\n" in text
    assert all(f"\n  {name} " in text for name in (*main.MODE_OF, "init", *main.MODULE_OF))
    assert all(f"--{name}" in text for name in ("workdir", "mode", *main.PROCESS_FLAGS))
    assert f"({', '.join(load.packaged())})" in " ".join(text.split())


def test_fields_named_in_the_help_exist() -> None:
    listed = main.HELP.partition("fields worth knowing:")[2].partition("results:")[0]
    names = [part.split()[0] for part in listed.split(",")]
    assert len(names) == 12
    assert set(names) <= {
        *load.field_names(parse("--config=stub.py").experiment),
        "model.rank",
    }


def test_commands_are_modes(run_with: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(whole_run, "run", lambda of, workdir, mode, **more: modes.append(mode))
    for command in ("train", "prepare", "evaluate"):
        assert main.main(["dsmoe", command, "--config=stub.py"]) == 0
    assert main.main(["dsmoe", "train", "--config=stub.py", "--mode=student"]) == 0
    assert modes == ["all", "prepare", "evaluate", "student"]


def test_unknown_command_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert main.main(["dsmoe", "trian", "--config=stub.py"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown command 'trian'; nearest: 'train' (--help shows examples)\n"
    )


def test_init_writes_the_packaged_configuration_once(capsys: pytest.CaptureFixture) -> None:
    assert main.main(["dsmoe", "init", "my_shop"]) == 0
    assert "dsmoe train --config my_shop.py" in capsys.readouterr().out
    text = pathlib.Path("my_shop.py").read_text()
    assert "custom.py" not in text.replace("data/prepare/custom.py", "")
    assert parse("--config=my_shop.py").experiment.dataset == "my shop"
    assert parse("--config=my_shop.py").workdir == pathlib.Path("runs/my_shop")
    assert main.main(["dsmoe", "init", "my_shop"]) == 2
    assert "my_shop.py: expected no such file" in capsys.readouterr().err
    assert pathlib.Path("my_shop.py").read_text() == text
    for wrong in ([], ["a/b"], ["one", "two"]):
        assert main.main(["dsmoe", "init", *wrong]) == 2


def test_other_commands_get_their_own_flags(capsys: pytest.CaptureFixture) -> None:
    for command in main.MODULE_OF:
        with pytest.raises(SystemExit) as ended:
            main.main(["dsmoe", command, "--help"])
        assert ended.value.code == 0
        assert f"dsmoe {command}" in capsys.readouterr().out


def test_a_repeated_flag_of_a_tuple_adds_elements() -> None:
    options = parse("--config=stub.py", "--config.eval.k=10", "--config.eval.k=20")
    assert options.experiment.eval.k == options.overrides["eval.k"] == (10, 20)


def test_defaults_come_from_the_file() -> None:
    options = parse("--config", "stub.py")
    assert options.experiment.train == schema.TrainConfig()
    assert options.overrides == {}
    assert options.mode == "all"
    assert options.workdir == pathlib.Path("runs/stub")
    assert options.processes is None


def test_variant_reaches_the_file_and_names_the_workdir() -> None:
    options = parse("--config=stub.py:sample,no_sap")
    assert options.experiment.variant == "sample,no_sap"
    assert options.workdir == pathlib.Path("runs/stub-sample-no_sap")


def test_overrides_are_typed_whatever_their_order() -> None:
    options = parse(
        "--config.train.learning_rate=3e-4",
        "--config.model.num_experts",
        "5",
        "--config.eval.remove_seen=False",
        "--noconfig.eval.references",
        "--config.eval.k=10,20",
        "--config.features.exclude=user_id",
        "--workdir=~/x",
        "--mode=student",
        "--config",
        "stub.py",
    )
    experiment = options.experiment
    assert experiment.train.learning_rate == 3e-4
    assert experiment.model.num_experts == 5
    assert experiment.eval.remove_seen == "none"
    assert experiment.eval.references is False
    assert experiment.eval.k == (10, 20)
    assert experiment.features.exclude == ("user_id",)
    assert options.overrides == {
        "train.learning_rate": 3e-4,
        "model.num_experts": 5,
        "eval.remove_seen": "none",
        "eval.references": False,
        "eval.k": (10, 20),
        "features.exclude": ("user_id",),
    }
    assert options.workdir == pathlib.Path.home() / "x"
    assert options.mode == "student"


def test_every_field_can_be_set_to_the_value_it_has() -> None:
    before = fingerprint.flatten(fingerprint.as_dict(parse("--config=stub.py").experiment))
    fields = load.field_names(parse("--config=stub.py").experiment)
    assert len(fields) > 30
    flags = [
        f"--config.{name}={tuple(before[name]) if type(before[name]) is list else before[name]}"
        for name in fields
    ]
    options = parse("--config=stub.py", *flags)
    assert fingerprint.flatten(fingerprint.as_dict(options.experiment)) == before
    assert len(options.overrides) == len(fields)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --config FILE[:token,token], got none"),
        (["--config"], "expected --config FILE[:token,token], got none"),
        (["--confg=stub.py"], "unknown flag '--confg'; nearest: '--config'"),
        (["--config=stubb.py"], "--config: no such file 'stubb.py'; nearest: 'stub.py'"),
        (["--config=absent/x.py"], "--config: no such file 'absent/x.py'"),
        (["--config=stub.py", "--wrkdir=x"], "unknown flag '--wrkdir'; nearest: '--workdir'"),
        (
            ["--config=stub.py", "--learning_rate=1"],
            "unknown flag '--learning_rate'; nearest: '--config.train.learning_rate'",
        ),
        (
            ["--config=stub.py", "--config.train.learing_rate=1"],
            "unknown field 'config.train.learing_rate'; nearest: 'config.train.learning_rate'",
        ),
        (
            ["--config=stub.py", "--config.xyzzy"],
            "unknown field 'config.xyzzy'",
        ),
        (
            ["--config=stub.py", "--noconfig.eval.remov_seen"],
            "unknown field 'config.eval.remov_seen'; nearest: 'config.eval.remove_seen'",
        ),
        (
            ["--config=stub.py", "--config.model=mmoe"],
            "'config.model' is a section; set its fields, e.g. --config.model.known_prior=...",
        ),
        (
            ["--config=stub.py", "--config.train.learning_rate=fast"],
            "config.train.learning_rate: expected float, got 'fast'",
        ),
        (
            ["--config=stub.py", "--config.train.max_epochs=2.5"],
            "config.train.max_epochs: expected int, got '2.5'",
        ),
        (
            ["--config=stub.py", "--config.eval.references=maybe"],
            "config.eval.references: expected bool, got 'maybe'",
        ),
        (
            ["--config=stub.py", "--config.model.hidden=(8,'a')"],
            "config.model.hidden: expected elements of type int, got 'a'",
        ),
        (
            ["--config=stub.py:smaple"],
            "--config stub.py: variant: unknown token 'smaple'; nearest: 'sample'; "
            "known: no_sap, sample, synthetic",
        ),
        (
            ["--config=stub.py:sample,synthetic"],
            "--config stub.py: variant: expected at most one token of the axis 'data', "
            "got 'sample' and 'synthetic'",
        ),
        (
            ["--config=stub.py", "--mode=studnt"],
            "--mode: expected one of all, prepare, teacher, student, evaluate, export, got "
            "'studnt'; nearest: 'student'",
        ),
        (
            ["--config=stub.py", "extra"],
            "expected only flags, got 'extra'; write a value as --name=value",
        ),
        (["--config=stub.py", "--workdir"], "Missing value for flag --workdir"),
    ],
)
def test_wrong_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert parse_error(*arguments) == message
    assert main.main(["main", *arguments]) == 2
    streams = capsys.readouterr()
    assert streams.err == f"error: {message} (--help shows examples)\n"
    assert streams.out == ""


def test_value_out_of_range_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert main.main(["main", "--config=stub.py", "--config.train.learning_rate", "-1"]) == 2
    assert capsys.readouterr().err == (
        "error: train.learning_rate: expected a number > 0, got -1.0 (--help shows examples)\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(variant:\n", "--config bad.py: '(' was never closed (bad.py, line 1)"),
        ("x = 1\n", "--config bad.py: expected a function get_config(variant), found none"),
    ],
)
def test_file_that_is_no_configuration_is_one_line(text: str, message: str) -> None:
    pathlib.Path("bad.py").write_text(text)
    assert parse_error("--config=bad.py") == message


def test_traceback_is_shown_on_request(capsys: pytest.CaptureFixture) -> None:
    assert main.main(["main", "--config=stub.py", "--traceback", "--mode=x"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_processes_come_from_flags_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSMOE_COORDINATOR", "host0:1234")
    monkeypatch.setenv("DSMOE_NUM_PROCESSES", "4")
    monkeypatch.setenv("DSMOE_PROCESS_ID", "3")
    options = parse("--config=stub.py")
    assert options.processes == ("host0:1234", 4, 3)
    options = parse("--config=stub.py", "--process_id=0", "--coordinator", "other:1")
    assert options.processes == ("other:1", 4, 0)


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        (
            {"DSMOE_NUM_PROCESSES": "two"},
            [],
            "DSMOE_NUM_PROCESSES: expected an integer >= 1, got 'two'",
        ),
        ({"DSMOE_PROCESS_ID": "-1"}, [], "DSMOE_PROCESS_ID: expected an integer >= 0, got '-1'"),
        ({}, ["--num_processes=0"], "--num_processes: expected an integer >= 1, got '0'"),
        ({}, ["--process_id=1.5"], "--process_id: expected an integer >= 0, got '1.5'"),
        (
            {"DSMOE_NUM_PROCESSES": "2"},
            ["--process_id=0"],
            "--coordinator, --num_processes and --process_id belong together; --coordinator "
            "(or DSMOE_COORDINATOR) is missing",
        ),
        (
            {"DSMOE_COORDINATOR": "host0"},
            ["--process_id=0", "--num_processes=2"],
            "DSMOE_COORDINATOR: expected host:port, got 'host0'",
        ),
        (
            {"DSMOE_COORDINATOR": "host0:1"},
            ["--process_id=2", "--num_processes=2"],
            "--process_id: expected less than the 2 processes, got 2",
        ),
    ],
)
def test_wrong_processes_are_one_line(
    environment: dict[str, str],
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert parse_error("--config=stub.py", *arguments) == message


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple, dict]]:
    """The calls of `jax.distributed.initialize`, none of which connects."""
    calls: list[tuple[tuple, dict]] = []
    monkeypatch.setattr(
        "jax.distributed.initialize", lambda *args, **kwargs: calls.append((args, kwargs))
    )
    return calls


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
}


def test_one_process_connects_to_nobody(connections: list) -> None:
    assert not main.start_jax(parse("--config=stub.py"))
    assert connections == []


def test_given_processes_are_used_as_they_are(
    connections: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    flags = ["--coordinator=host0:1", "--num_processes=3", "--process_id=2"]
    assert main.start_jax(parse("--config=stub.py", *flags))
    more = {"cluster_detection_method": "deactivate", "coordinator_bind_address": None}
    assert connections == [(("host0:1", 3, 2), more)]


def test_the_coordinator_listens_where_it_was_told(connections: list) -> None:
    flags = ["--coordinator=127.0.0.1:123", "--num_processes=2", "--process_id=0"]
    assert main.start_jax(parse("--config=stub.py", *flags))
    assert connections[0][1]["coordinator_bind_address"] == "127.0.0.1:123"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("127.0.0.1", "127.0.0.1:7"),
        ("localhost", "127.0.0.1:7"),
        # /etc/hosts of Debian: no other host reaches it.
        ("node0", None),
        # A service in front of the host, and a name that nobody knows.
        ("192.0.2.1", None),
        ("nowhere.invalid", None),
    ],
)
def test_an_address_that_others_cannot_use_is_not_bound_to(
    found: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(host: str, port: None, type: int) -> list[tuple]:
        if host == "nowhere.invalid":
            raise socket.gaierror
        number = host if host[0].isdigit() else "127.0.0.1"
        return [(socket.AF_INET, type, 6, "", (number, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert main.bind_address(f"{found}:7") == expected


def test_slurm_tasks_are_detected(connections: list, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert main.start_jax(parse("--config=stub.py"))
    assert connections == [((), {})]


@pytest.mark.parametrize("change", [{"SLURM_STEP_NODELIST": None}, {"SLURM_NTASKS": "1"}])
def test_slurm_without_other_tasks_connects_to_nobody(
    change: dict[str, str | None], connections: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (SLURM | change).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert not main.start_jax(parse("--config=stub.py"))
    assert connections == []


@pytest.fixture
def run_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[..., None]], int]]:
    """Runs a command whose work is the given function; puts the handler of SIGTERM back."""
    before = signal.getsignal(signal.SIGTERM)

    def run(work: Callable[..., None]) -> int:
        monkeypatch.setattr(whole_run, "run", work)
        flags = ["--config=stub.py", "--config.seed=3", "--mode=teacher", "--continue_from=runs/a"]
        return main.main(["main", *flags])

    yield run
    signal.signal(signal.SIGTERM, before)


def test_run_gets_what_was_parsed(run_with: Callable) -> None:
    received: list[Any] = []
    assert run_with(lambda *arguments, **more: received.extend((*arguments, more))) == 0
    experiment, workdir, mode, more = received
    assert experiment.seed == 3
    assert (workdir, mode) == (pathlib.Path("runs/stub"), "teacher")
    assert more == {
        "overrides": {"seed": 3},
        "handle_signals": True,
        "continue_from": pathlib.Path("runs/a"),
        "anew": False,
    }


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (interrupt.InterruptedRunError("saved at step 3"), 130, "saved at step 3\n"),
        (loop.DivergedError("the loss is nan"), 1, "error: the loss is nan\n"),
        (ValueError("a.csv: row 3: expected"), 2, "error: a.csv: row 3: expected\n"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "interrupted; what was saved before stays\n"),
    ],
)
def test_ends_are_one_line_and_a_status(
    error: BaseException,
    status: int,
    message: str,
    run_with: Callable,
    capsys: pytest.CaptureFixture,
) -> None:
    def work(*arguments: object, **more: object) -> None:
        raise error

    assert run_with(work) == status
    assert capsys.readouterr().err == message


def test_error_of_a_library_keeps_its_trace(run_with: Callable) -> None:
    def work(*arguments: object, **more: object) -> None:
        raise ValueError("shapes differ\n  (3,) and (4,)")

    with pytest.raises(ValueError, match="shapes differ"):
        run_with(work)


def test_sigterm_before_training_cleans_up(run_with: Callable) -> None:
    cleaned = []

    def work(*arguments: object, **more: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)

    assert run_with(work) == 130
    assert cleaned == [True]
