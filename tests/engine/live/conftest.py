"""An engine of the embedded model for each file of tests, and transformers to compare with."""

import engine_cases
import pytest

engine_cases.set_small()  # before any test imports vllm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded model's checkpoint with wider heads."""
    return engine_cases.write_wide(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def engine(request, folder):
    """An engine with the options of the file."""
    return engine_cases.start(folder, **getattr(request.module, "OPTIONS", {}))


@pytest.fixture(scope="module")
def reference(folder):
    """The same checkpoint in transformers."""
    return engine_cases.Reference(folder)
