from dsmoe_jax.compare.report import method_table
from dsmoe_jax.models import registry
from dsmoe_jax.models.matching import dsmoe
from tests.compare import made_up


def test_every_registered_method_has_a_row_that_says_what_it_is():
    rows = [[cell.text for cell in row] for row in method_table.make().rows]
    assert [row[0] for row in rows] == [*registry.MATCHERS, *registry.RANKERS]
    assert all(all(row) for row in rows)
    by_name = {row[0]: row for row in rows}
    assert by_name["mind"][3] == "yes" and by_name["star"][3] == "no"
    assert by_name["dsmoe"][4] != by_name["dssm"][4]


def test_table_1_is_the_registry():
    table = method_table.make()
    labels = [row[0].text for row in table.rows]
    assert labels == [*registry.MATCHERS, *registry.RANKERS]
    own = made_up.row_of(table, "dsmoe")
    assert (own["stage"].text, own["ANN"].text) == ("matching", "yes")
    assert own["user-item interaction"].text == "taught by a ranker"
    assert own["architecture"].text in " ".join(dsmoe.__doc__.split())
    assert made_up.row_of(table, "mmoe_din")["ANN"].text == "no"


def test_methods_of_one_file_are_told_apart():
    rows = [[cell.text for cell in row] for row in method_table.make().rows]
    assert len({row[2] for row in rows}) == len(rows)
    by_name = {row[0]: row[2] for row in rows}
    assert by_name["fuxi_mme"].endswith("matchers; this row: Fuxi-MME-style")
    assert "this row" not in by_name["mind"]
