"""Missing optional packages are named with the extra that brings them."""

from __future__ import annotations

import pytest

from medisee.errors import MissingExtraError
from medisee.extras import needs_extra


def test_a_missing_package_names_feature_and_extra():
    with (
        pytest.raises(MissingExtraError, match=r"training needs .*medisee\[train\]"),
        needs_extra("training", "train"),
    ):
        raise ModuleNotFoundError(name="torch.nn")


def test_a_missing_module_of_our_own_stays_what_it_is():
    with pytest.raises(ModuleNotFoundError), needs_extra("training", "train"):
        raise ModuleNotFoundError(name="medisee.training")
