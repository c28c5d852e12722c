"""Two channels: a small case of the benchmark, with what it must hold."""

from __future__ import annotations

import pytest
from channels import main, measure

from itkstream import Deformable, RansacAffine
from itkstream.phantoms import PhantomSettings

SMALL = PhantomSettings(shape=(72, 64, 56), spacing=(1.0, 1.0, 1.0), seed=1)
STEPS = (RansacAffine(radii=[(3, 10)]), Deformable(stiffness=1))


@pytest.mark.slow
def test_a_useless_second_loses_nothing_and_the_rest_gains_a_quarter() -> None:
    """Truth: the phantom's map. At full size and all steps, half is a third worse or more."""
    found = {
        case: measure(case, SMALL, STEPS)
        for case in ("whole", "unrelated", "half", "other half", "both halves")
    }
    assert found["unrelated"]["p95"] <= 1.05 * found["whole"]["p95"]
    alone = min(found[half]["p95"] for half in ("half", "other half"))
    assert found["both halves"]["p95"] < 0.75 * alone
    assert min(found["both halves"]["shares"]) > 0.5
    assert found["unrelated"]["shares"] == [1.0, 0.0]


@pytest.mark.slow
def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seeds", "1", "--shape", "64", "56", "48", "--cases", "flat"])
    assert "1.00, 0.00" in capsys.readouterr().out
