from __future__ import annotations

import pytest

from medisee.data.licences import may_be_passed_on


@pytest.mark.parametrize(
    "licence",
    [
        "CC BY 4.0",
        "CC BY-NC-SA 3.0 / CC BY 4.0",
        "cc-by-nc-4.0",
        "CC0 1.0",
        "https://creativecommons.org/licenses/by-nc-sa/4.0/",
        "Creative Commons Attribution 4.0 International",
        "Apache-2.0 (repository)",
        "BSD-3-Clause",
        "GPL-3.0",
        "MIT License",
    ],
)
def test_licences_that_let_others_have_a_copy(licence):
    assert may_be_passed_on(licence)


@pytest.mark.parametrize(
    "licence",
    [
        None,
        "",
        "not stated",
        "not stated: research use",
        "research and education, non-commercial",
        "CC BY-ND 4.0",
        "CC BY-NC-ND 4.0",
        "https://creativecommons.org/licenses/by-nd/4.0/",
        "CC BY 4.0 / research use",
        "all rights reserved",
        "permitted",
    ],
)
def test_what_is_not_known_to_allow_it_forbids(licence):
    assert not may_be_passed_on(licence)
