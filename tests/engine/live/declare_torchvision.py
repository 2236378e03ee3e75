"""Lets torchvision's build for CUDA be imported beside a torch for CPUs.

Its compiled operators cannot be loaded there, and its Python part describes two of them as it is
imported. Here they are declared, and computed by nobody: image processors do not call them.

`python declare_torchvision.py` puts it into the environment that runs it, with a .pth file that
imports it as Python starts.
"""

import sys

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_KEPT = []  # operators last as long as what declared them


class Declaration:
    """Declares the operators when torchvision is about to be imported."""

    def find_spec(self, name, path=None, target=None):
        """Finds nothing itself."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in OPERATORS:
                library.define(operator)
            _KEPT.append(library)


def install():
    """Put this file, and what imports it, beside the environment's packages."""
    import shutil
    import sysconfig
    from pathlib import Path

    packages = Path(sysconfig.get_path("purelib"))
    shutil.copy(__file__, packages)
    name = Path(__file__).stem
    (packages / f"{name}.pth").write_text(f"import {name}\n")


if __name__ == "__main__":
    install()
else:
    sys.meta_path.insert(0, Declaration())
