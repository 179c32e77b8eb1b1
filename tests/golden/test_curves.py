import json

import numpy as np
import pytest

from tests.golden import curves


@pytest.mark.parametrize("variant", curves.VARIANTS)
def test_losses_are_those_of_the_plain_step(variant):
    expected = json.loads(curves.PATH.read_text())[variant]
    assert expected[-1] < expected[0], "the curve falls, so that it says something"
    np.testing.assert_allclose(
        curves.train(variant),
        expected,
        rtol=1e-5,
        err_msg="meant to change? python -m tests.golden.curves, and say why in the commit",
    )
