"""The MCP tools through the protocol's own client."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import pytest
from dicom_series import SECRETS, write_series
from PIL import Image

pytest.importorskip("mcp.server.mcpserver", reason="the tools need the extra mcp")

from mcp import Client, StdioServerParameters

from medisee.mcp_server import create_server
from medisee.testing import FakeModel


def call(tool: str, server: Any = None, **arguments: Any) -> Any:
    """The result of one tool."""

    async def once() -> Any:
        async with Client(server or create_server(FakeModel)) as client:
            return await client.call_tool(tool, arguments)

    return anyio.run(once)


def picture(content: Any) -> Image.Image:
    assert content.mime_type == "image/png"
    return Image.open(BytesIO(base64.b64decode(content.data)))


def test_tools_are_described() -> None:
    async def listed() -> Any:
        async with Client(create_server(FakeModel)) as client:
            return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in anyio.run(listed)}
    assert set(tools) == {"ask", "targets", "describe"}
    assert all(tool.description for tool in tools.values())
    assert "question" in tools["ask"].input_schema["required"]


def test_ask_by_path(scan: Path) -> None:
    result = call("ask", question="Where is the liver?", image=str(scan))
    text, facts, overlay = result.content
    assert not result.is_error
    assert text.text == "The liver is in the middle."
    answer = json.loads(facts.text)
    [finding] = answer["findings"]
    assert finding["label"] == "liver"
    assert len(finding["box"]) == 4
    assert "mask" not in finding
    assert answer["image"]["width"] == 64
    assert picture(overlay).width >= 64


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_ask_by_content(scan: Path, prefix: str) -> None:
    data = prefix + base64.b64encode(scan.read_bytes()).decode()
    text, _, overlay = call("ask", question="Where is the liver?", image_base64=data).content
    assert text.text == "The liver is in the middle."
    picture(overlay).load()


def test_refusal_is_an_answer(scan: Path) -> None:
    result = call("ask", question="Where is the absent thing?", image=str(scan))
    assert not result.is_error
    assert json.loads(result.content[1].text)["refusal"] == "not_in_view"


def test_describe_tells_nothing_of_the_patient(tmp_path: Path) -> None:
    facts, shown = call("describe", image=str(write_series(tmp_path / "ct")), slice=1).content
    value = json.loads(facts.text)
    assert (value["modality"], value["plane"]) == ("CT", "axial")
    assert value["places"]["slice"] == {"shown": 1, "of": 5}
    assert picture(shown).size == (value["width"], value["height"])
    assert not [secret for secret in SECRETS if secret in facts.text]


def test_targets() -> None:
    from medisee.hub import TargetRecord

    class Knowing(FakeModel):
        @property
        def info(self) -> dict[str, Any]:
            return {"targets": [TargetRecord("liver", 5, 1, 0.9), TargetRecord("lung", 5, 0, None)]}

    result = call("targets", create_server(Knowing), search="LUNG")
    assert result.structured_content["result"] == [
        {"name": "lung", "n_train": 5, "n_test": 0, "dice": None}
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "name one image"),
        ({"image": "missing.png"}, "missing.png"),
        ({"image_base64": "###"}, "is not base64"),
        ({"image": "example:abdomen-mr", "window": "nonsense"}, "window"),
        ({"image": "example:abdomen-mr", "question": " "}, "question"),
    ],
)
def test_clear_errors(arguments: dict[str, Any], said: str) -> None:
    result = call("ask", **{"question": "Where is the liver?", **arguments})
    assert result.is_error
    assert said in result.content[0].text
    assert "Traceback" not in result.content[0].text


def test_a_fault_keeps_its_text() -> None:
    def load() -> Any:
        raise RuntimeError("secret")

    result = call("ask", create_server(load), question="Where?", image="example:abdomen-mr")
    assert result.is_error
    assert "secret" not in result.content[0].text


def test_without_the_extra(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "medisee.mcp_server")
    monkeypatch.setitem(sys.modules, "mcp.server.mcpserver", None)
    done = run("mcp")
    assert done.code == 2
    assert "medisee[mcp]" in done.err


@pytest.mark.slow
def test_real_model_over_standard_input_and_output() -> None:
    server = StdioServerParameters(command=sys.executable, args=["-m", "medisee", "mcp"])
    result = call("ask", server, question="Which organ makes bile?", image="example:abdomen-mr")
    assert not result.is_error
    answer = json.loads(result.content[1].text)
    assert answer["model"] == "nano"
    assert [finding["label"] for finding in answer["findings"]] == ["liver"]
    picture(result.content[2]).load()
