"""`medisee mcp`: tools for assistants that speak the Model Context Protocol."""

from __future__ import annotations

from typing import Any

from medisee.commands.options import DeviceOption, ModelOption
from medisee.extras import needs_extra

__all__ = ["mcp"]


def mcp(model: ModelOption = "nano", device: DeviceOption = None) -> None:
    """Let an assistant ask images through MediSee.

    Speaks the Model Context Protocol on standard input and output; assistants start it
    themselves, see docs/viewers.md. It reads the image files that the assistant names, with the
    rights of whoever starts it, and writes none.

    Example: medisee mcp --model nano
    """
    with needs_extra("medisee mcp", "mcp"):
        from medisee.mcp_server import create_server
    create_server(lambda: _load(model, device)).run("stdio")


def _load(model: str, device: str | None) -> Any:
    from medisee.predictor import load

    return load(model, device=device)
