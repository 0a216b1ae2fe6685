"""`medisee serve`: the page, the HTTP interface and the OpenAI-compatible one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medisee.commands.options import DeviceOption, ModelOption, RuntimeOption
from medisee.commands.screen import print_error, print_text, spinner
from medisee.errors import InputError
from medisee.extras import needs_extra

__all__ = ["serve"]

TOKEN = "MEDISEE_TOKEN"


Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")]
Token = Annotated[
    str | None,
    typer.Option(envvar=TOKEN, help="Bearer token that clients must send.", show_envvar=True),
]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option(help="Page elsewhere that browsers let call this server, as https://host."),
]
MaxUpload = Annotated[int, typer.Option(min=1, help="Largest request in MiB.")]
Sessions = Annotated[int, typer.Option(min=1, help="Images kept open at a time.")]
Keep = Annotated[int, typer.Option(min=1, help="Minutes that an unused image is kept.")]
MonaiLabel = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Serve MONAI Label's plugins too, with images from DIR."),
]
LabelStudio = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Draw Label Studio's pre-annotations too, on images from DIR.",
    ),
]
Replicas = Annotated[
    int, typer.Option(min=0, metavar="N", help="N replicas on Ray Serve; see docs/http.md.")
]


def serve(
    model: ModelOption = "nano",
    device: DeviceOption = None,
    runtime: RuntimeOption = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token: Token = None,
    allow_origin: AllowOrigin = None,
    max_upload: MaxUpload = 64,
    sessions: Sessions = 64,
    keep: Keep = 30,
    monai_label: MonaiLabel = None,
    label_studio: LabelStudio = None,
    ray: Replicas = 0,
) -> None:
    """Open the page and the HTTP interface.

    Listens on this machine only; another --host needs a --token. Images live in memory and are
    forgotten; nothing that is sent is logged. See docs/http.md.

    Example: medisee serve --port 8000
    """
    with needs_extra("medisee serve", "serve"):
        from medisee.serve.app import create_app
        from medisee.serve.limits import Limits
        from medisee.serve.server import (
            LOOPBACK_NAMES,
            address_of,
            check_exposure,
            is_loopback,
            listen,
            run,
        )
    check_exposure(host, token)
    limits = Limits(
        body_bytes=max_upload << 20,
        inbox_bytes=max(max_upload << 20, Limits.inbox_bytes),
        sessions=sessions,
        session_seconds=keep * 60,
    )
    hosts = (*LOOPBACK_NAMES, host) if is_loopback(host) else None
    if ray and (monai_label or label_studio):
        raise InputError("--monai-label and --label-studio work without --ray")
    listening = listen(host, port)
    address = address_of(listening, host)
    if ray:
        with needs_extra("replicas", "ray"):
            from medisee.serve.ray import deploy

            port = listening.getsockname()[1]
            listening.close()  # the port is free; Ray's proxy takes it
            print_text(
                f"MediSee {model}, replicas: {ray}; {address}  (stop with Ctrl-C)", wrap=False
            )
            deploy(model, runtime, limits, replicas=ray, host=host, port=port, token=token,
                   hosts=hosts)  # fmt: skip
        return
    app = create_app(
        _load(model, device, runtime),
        limits,
        token=token,
        hosts=hosts,
        origins=tuple(allow_origin or ()),
        datastore=monai_label,
        label_studio_images=label_studio,
    )
    print_text(f"MediSee {model}: {address}  (stop with Ctrl-C)", wrap=False)
    print_error("A research tool, not a medical device.")
    run(app, listening)


def _load(model: str, device: str | None, runtime: str | None) -> Any:
    from medisee.predictor import load

    with spinner(f"Loading {model} ..."):
        return load(model, device=device, runtime=runtime)
