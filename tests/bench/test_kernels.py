import pathlib
import types

import jax
import jax.numpy as jnp
import pytest

from dsmoe_jax.bench import kernels


def test_a_program_s_matrix_product_is_among_its_kernels_with_its_share():
    a = jnp.ones((512, 512))
    compiled = jax.jit(lambda a: jnp.sin(a @ a + jnp.flip(a))).lower(a).compile()

    def turn(repetitions):
        for _ in range(repetitions):
            compiled(a).block_until_ready()

    turn(1)
    found = kernels.profile(turn, 5, compiled.as_text())
    (product,) = [kernel for kernel in found["kernels"] if kernel["op"].endswith("dot_general")]
    assert 0 < product["ms"] <= found["kernel_ms"]
    assert product["share"] == pytest.approx(product["ms"] / found["kernel_ms"])
    shares = [kernel["share"] for kernel in found["kernels"]]
    assert shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-9


def event(name, start_ns, duration_ns, hlo=""):
    return types.SimpleNamespace(
        name=name,
        start_ns=start_ns,
        duration_ns=duration_ns,
        stats=[("run_id", 3), *([("hlo_op", hlo)] if hlo else [])],
    )


def plane(name, **lines):
    made = [types.SimpleNamespace(name=key.replace("_", " "), events=e) for key, e in lines.items()]
    return types.SimpleNamespace(name=name, lines=made)


@pytest.fixture
def read(monkeypatch):
    """Reads planes in place of a trace."""

    def read(*planes):
        trace = types.SimpleNamespace(planes=planes)
        of_file = types.SimpleNamespace(from_file=lambda path: trace)
        monkeypatch.setattr(jax.profiler, "ProfileData", of_file)
        return [(e.name, e.duration_ns) for e in kernels.read(pathlib.Path("trace.xplane.pb"))]

    return read


def test_of_a_gpu_the_kernels_of_its_streams_count_and_nothing_twice(read):
    gemm = event("gemm", 0, 30, "dot.1")
    found = read(
        plane("/host:CPU", python=[event("step", 0, 90, "dot.1")]),
        plane(
            "/device:GPU:0",
            Stream_7=[gemm, event("memcpy", 40, 5)],
            Stream_8=[event("add", 10, 2)],
            XLA_Modules=[event("jit_step", 0, 45)],
            XLA_Ops=[gemm],
        ),
    )
    assert found == [("gemm", 30), ("memcpy", 5), ("add", 2)]


def test_of_a_tpu_its_operations_count(read):
    ops = [event("fusion.1", 0, 9, "fusion.1")]
    assert read(plane("/device:TPU:0", Steps=[event("1", 0, 9)], XLA_Ops=ops)) == [("fusion.1", 9)]


def test_a_loop_counts_without_its_body(read):
    thread = [
        event("while", 0, 100, "while.5"),
        event("dot", 10, 40, "dot.1"),
        event("add", 20, 5, "add.1"),
        event("dot", 60, 30, "dot.1"),
        event("wait", 0, 200),
        event("copy", 100, 7, "copy.1"),
    ]
    found = read(plane("/host:CPU", thread=thread))
    assert found == [("while", 30), ("dot", 35), ("add", 5), ("dot", 30), ("copy", 7)]


def test_kernels_are_summed_by_name_and_told_by_what_most_of_them_was_made_of():
    events = [
        kernels.Event("gemm", "dot.1", 0.0, 2e6),
        kernels.Event("gemm", "dot.2", 0.0, 4e6),
        kernels.Event("add", "add.1", 0.0, 1e6),
        kernels.Event("copy", "", 0.0, 1e6),
    ]
    found = kernels.summarise(events, 2, {"dot.1": "jit(f)/a", "dot.2": "jit(f)/b"}, most=2)
    assert found["kernel_ms"] == 4.0
    assert found["kernels"] == [
        {"name": "gemm", "ms": 3.0, "share": 0.75, "op": "jit(f)/b"},
        {"name": "add", "ms": 0.5, "share": 0.125, "op": ""},
    ]


def test_a_trace_without_kernels_is_none():
    with pytest.raises(ValueError, match="expected kernels in the trace, found none"):
        kernels.profile(lambda repetitions: None, 1, "")
