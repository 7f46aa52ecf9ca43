"""What errors say in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zim.errors import MissingExtraError, install_advice, reason


def _raised(make: Any) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        make()
    return caught.value


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: {}["image"], "image is missing"),
        (lambda: [][0], "fewer values than expected"),
        (lambda: float([]), "a value of another kind"),  # pyright: ignore
        (lambda: open("/nowhere/at/all"), "No such file or directory"),  # noqa: SIM115, PTH123
        (lambda: json.loads("{"), "Expecting property name"),
        (lambda: (_ for _ in ()).throw(ValueError()), "damaged"),
    ],
)
def test_reasons_are_words_and_not_pythons_names(make: Any, said: str) -> None:
    assert said in reason(_raised(make))


def test_extras_that_fit_no_other_want_an_environment_of_their_own() -> None:
    assert install_advice("eval").endswith("[eval]'")
    assert "-e" in install_advice("eval")
    assert "environment of its own" in install_advice("nerfstudio")
    assert "environment of its own" in str(MissingExtraError("groundingdino", "groundingdino"))
