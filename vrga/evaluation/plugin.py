"""What lmms-eval finds by its entry point: `python -m lmms_eval --model vrga`."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Where the model is; it is imported when it is asked for."""
    return ModelManifest(model_id="vrga", chat_class_path="vrga.evaluation.lmms.VRGAModel")
