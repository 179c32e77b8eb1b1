import pytest

from dsmoe_jax.compare import budget
from dsmoe_jax.config import load


def test_the_small_budget_bounds_both_stages_and_lengthens_none():
    experiment = load.load_experiment("configs/kuairand.py", "sample")
    experiment.teacher.max_epochs = 7
    assert budget.BUDGETS["small"].limit(experiment) == {
        "train.max_epochs": 15,
        "train.max_minutes": 3.0,
        "teacher.max_minutes": 3.0,
    }
    assert budget.BUDGETS["full"].limit(experiment) == {}


def test_seeds_and_days_are_adjusted():
    small = budget.BUDGETS["small"]
    assert budget.adjust(small, None, None) == small
    other = budget.adjust(small, 4, "0,2,2")
    assert (other.seeds, other.other_seeds, other.dropped_days) == (4, 4, (0, 2))


@pytest.mark.parametrize(("seeds", "days"), [(0, None), (None, "2,"), (None, "-1")])
def test_what_makes_no_sense_is_refused(seeds, days):
    with pytest.raises(ValueError, match=r"^--(seeds|days): expected"):
        budget.adjust(budget.BUDGETS["small"], seeds, days)
