"""Requests made from our own OpenAPI document: no fault, no answer that it does not describe."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from medisee.serve.app import create_app
from medisee.testing import FakeModel

schemathesis = pytest.importorskip("schemathesis")

PHASES = (Phase.explicit, Phase.generate)


def attack(examples: int) -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    ]
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(FakeModel()))
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def send(case) -> None:
            case.call_and_validate(checks=checks, timeout=120)  # seconds; a busy machine is slow

        send()


def test_a_few_requests_of_every_kind():
    attack(8)


@pytest.mark.slow
def test_many_requests_of_every_kind():
    attack(300)
