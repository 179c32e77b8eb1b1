import dataclasses
import subprocess
import sys

import pytest

from dsmoe_jax.config import reference, schema
from dsmoe_jax.models import registry

CLASSES = [c for _, _, sections in reference.list_sections() for c in sections]


@pytest.mark.parametrize("section", CLASSES, ids=lambda section: section.__name__)
def test_every_field_has_a_meaning(section):
    meanings = reference.find_meanings(section)
    named = [own.name for own in reference.own_fields(section)]
    assert [name for name in named if not meanings.get(name)] == []


def test_every_method_and_section_is_on_the_page():
    page = reference.render()
    for method in (*registry.MATCHERS.values(), *registry.RANKERS.values()):
        assert f"`{method.__name__}`" in page
    for own in dataclasses.fields(schema.Experiment):
        default = own.default_factory
        if default is not dataclasses.MISSING:
            assert all(f"| `{f.name}` |" in page for f in dataclasses.fields(default))
    rank = "| `rank` | `int` | `4` | a number >= 1 | R of the low-rank scenario correction in every"
    assert rank in page
    assert "| `product_dtype` | `str` | `'float32'` | one of ('float32', 'bfloat16') |" in page


def test_a_docstring_that_explains_what_its_class_lacks_is_refused():
    @dataclasses.dataclass
    class Section:
        """A section.

        Attributes:
          rank: What is there.
          width: What is not.
        """

        rank: int = 1

    with pytest.raises(ValueError, match=r"Section: .* got 'width'"):
        reference.find_meanings(Section)


def test_names_that_share_a_meaning_and_lines_that_continue():
    @dataclasses.dataclass
    class Section:
        """A section.

        Attributes:
          first, second: Both
            of them.
          third: See: `first`.
        """

        first: int = 1
        second: int = 1
        third: int = 1

    both = "Both of them."
    expected = {"first": both, "second": both, "third": "See: `first`."}
    assert reference.find_meanings(Section) == expected


def test_declarations_are_read_without_jax():
    code = "import sys; from dsmoe_jax.config import reference; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
