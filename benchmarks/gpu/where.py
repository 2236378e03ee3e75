"""What a result was measured on; called in a worker, since it initialises CUDA."""

from __future__ import annotations

import os

from benchmarks.gpu.case import PLUGIN, digest


def here() -> dict:
    """Kind ("cuda" or "cpu"), device, versions and commit of this machine and checkout.

    Where there is no git, the commit is VRGA_COMMIT, or a digest of the sources; where there is no
    GPU, the kernels run in Triton's interpreter from here on.

    Raises:
        RuntimeError: a GPU, and Triton's interpreter asked for.
    """
    import torch

    from benchmarks.timing import environment

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    elif os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1: unset it, the interpreter would run on this GPU")
    found = environment()
    device = str(found["device"]) if kind == "cuda" else f"cpu: {found['device']}"
    names = ("python", "torch", "triton", "transformers")
    versions = {name: str(found[name]) for name in names}
    if kind == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        versions["cudnn"] = str(torch.backends.cudnn.version())
    commit = str(found["commit"])
    if commit == "unknown":
        commit = f"sources {digest(PLUGIN)}"
    return {"kind": kind, "device": device, "versions": versions, "commit": commit}
