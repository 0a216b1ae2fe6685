"""One compiled graph and what runs it: onnxruntime, or OpenVINO for the image encoder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from ..extras import needs_extra
from ..hub import cache_folder
from ..packing import FILE

__all__ = ["DIGEST", "Graph", "OpenVinoGraph", "weights_digest"]

DIGEST = "weights"
"""Metadata of a graph: the digest of the packed weights that it was made for."""

NOT_IMPLEMENTED = ("NOT_IMPLEMENTED", "not a registered function/op", "opset", "Opset")
"""What onnxruntime says of a graph that is too new for it."""

Floats = NDArray[np.float32]


def weights_digest(folder: Path) -> str:
    """What ties graphs to their weights: the packed file's header, where every array lies."""
    with (folder / FILE).open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return hashlib.sha256(file.read(size)).hexdigest()[:16]


class Graph:
    """One compiled graph; whatever onnxruntime raises becomes an error that a user can read."""

    def __init__(self, folder: Path, name: str) -> None:
        import onnxruntime

        path = _found(folder, name)
        try:
            self._session = onnxruntime.InferenceSession(
                path, _options(), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises its own kinds, of no common base
            raise _unusable(
                path, error, f"onnxruntime {onnxruntime.__version__}", "1.22"
            ) from error
        _check_digest(path, self._session.get_modelmeta().custom_metadata_map.get(DIGEST))
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, **given: NDArray[Any]) -> dict[str, Floats]:
        """Outputs by name, in the graph's order."""
        try:
            found = self._session.run(None, given)
        except Exception as error:
            if _lacks_memory(error):
                raise MemoryError from error
            raise
        return dict(zip(self._outputs, found, strict=True))


class OpenVinoGraph:
    """The same graph on OpenVINO, which has kernels for bfloat16 where the processor has units.

    What it compiles is kept in the platform's cache folder: the first start takes seconds.
    """

    def __init__(self, folder: Path, name: str) -> None:
        with needs_extra("runtime openvino", "openvino"):
            import openvino
        path = _found(folder, name)
        core = openvino.Core()
        try:
            model = core.read_model(path)
            _check_digest(path, _metadata(model))
            self._compiled = core.compile_model(model, "CPU", _openvino_settings())
        except RuntimeError as error:
            raise _unusable(path, error, f"openvino {openvino.__version__}", "2025.0") from error
        self._request = self._compiled.create_infer_request()
        self._outputs = [output.any_name for output in self._compiled.outputs]

    def __call__(self, **given: NDArray[Any]) -> dict[str, Floats]:
        """Outputs by name, in the graph's order."""
        found = self._request.infer(given)
        return {name: found[name].copy() for name in self._outputs}


def _found(folder: Path, name: str) -> Path:
    path = folder / f"{name}.onnx"
    if not path.is_file():
        raise ModelError(f"{folder} has no {name}.onnx; make it with `medisee compile {folder}`")
    return path


def _check_digest(path: Path, made_for: str | None) -> None:
    if made_for != weights_digest(path.parent):
        raise ModelError(
            f"{path} was made for other weights; make it anew with `medisee compile {path.parent}`"
        )


def _metadata(model: Any) -> str | None:
    place = ["framework", DIGEST]
    return model.get_rt_info(place).astype(str) if model.has_rt_info(place) else None


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    # A waiting thread sleeps, so that nothing starves beside us.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _threads() -> int:
    return min(2, os.cpu_count() or 1)


def _openvino_settings() -> dict[str, Any]:
    return {
        "INFERENCE_NUM_THREADS": _threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # two sessions must not share a core while another idles
        "CACHE_DIR": str(cache_folder() / "openvino"),
    }


def _unusable(path: Path, error: Exception, engine: str, least: str) -> Exception:
    """Why a graph cannot be loaded, and what helps."""
    if _lacks_memory(error):
        return MemoryError()
    reason = str(error).strip().split("\n")[0]
    if any(sign in reason for sign in NOT_IMPLEMENTED):
        return ModelError(
            f"{engine} lacks what {path} needs: install {engine.split()[0]} {least} or newer, or "
            "use runtime torch"
        )
    return ModelError(
        f"{path} cannot be run: {reason}; make it anew with `medisee compile {path.parent}`, or "
        "use runtime torch"
    )


def _lacks_memory(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate" in text
