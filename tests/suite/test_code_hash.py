import ast

import pytest

from dsmoe_jax.suite import code_hash

DSMOE = ("dsmoe_jax.run", "dsmoe_jax.models.matching.dsmoe")


@pytest.fixture
def edit(monkeypatch):
    """Shows one module with another text; hashes are made anew."""
    originals = code_hash._digest, code_hash._imports

    def edit(name, change):
        parse = ast.parse
        path = code_hash._path(name)
        text = change(path.read_text())
        monkeypatch.setattr(
            code_hash, "_parse", lambda p: parse(text if p == path else p.read_text())
        )
        for function in originals:
            function.cache_clear()

    yield edit
    for function in originals:
        function.cache_clear()


def test_what_a_run_imports_is_counted_and_what_it_does_not_is_not():
    found = code_hash.reachable(DSMOE)
    assert {"dsmoe_jax.train_step", "dsmoe_jax.nn.sap", "dsmoe_jax.metrics"} <= found
    other = {"dsmoe_jax.models.ranking.mmoe_din", "dsmoe_jax.nn.attention", "dsmoe_jax.export"}
    assert not other & found
    assert not any(name.startswith(("dsmoe_jax.suite", "dsmoe_jax.bench")) for name in found)
    assert not found & code_hash.UNCOUNTED


def test_another_methods_file_leaves_the_hash(edit):
    before = code_hash.code_hash(DSMOE)
    edit("dsmoe_jax.models.ranking.mmoe_din", lambda text: text + "\nNEW = 1\n")
    assert code_hash.code_hash(DSMOE) == before
    with_teacher = (*DSMOE, "dsmoe_jax.models.ranking.mmoe_din")
    changed = code_hash.code_hash(with_teacher)
    edit("dsmoe_jax.models.ranking.mmoe_din", lambda text: text)
    assert code_hash.code_hash(with_teacher) != changed


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        (lambda text: text.replace("residual", "remainder") + "\n# a comment\n", False),
        (lambda text: text.replace('"""The step', '"""A step', 1), False),
        (lambda text: text + "\nNEW = 1\n", True),
    ],
)
def test_only_statements_matter(edit, change, matters):
    before = code_hash.code_hash(DSMOE)
    edit("dsmoe_jax.train_step", change)
    assert (code_hash.code_hash(DSMOE) != before) == matters


def test_what_is_asked_for_is_counted_whatever_it_is():
    assert "dsmoe_jax.suite.scored" in code_hash.reachable(["dsmoe_jax.suite.scored"])
