"""On a GPU, where nobody has run it, nothing is steered or hooked until it is asked for."""

from types import SimpleNamespace

import pytest
from test_admission import engine, request
from test_plugin import module

from vrga.engine.device import UNTESTED_GPU
from vrga.engine.door import admit
from vrga.engine.hooks import hook_attention, hook_runner
from vrga.engine.plan import PLAN


@pytest.fixture
def gpu(monkeypatch):
    """Makes the configuration of an engine on a GPU; the platform is CUDA's."""
    monkeypatch.delenv(UNTESTED_GPU, raising=False)
    platform = SimpleNamespace(is_rocm=lambda: False)
    module(monkeypatch, "vllm.platforms", current_platform=platform)

    def made(backend=None):
        named = None if backend is None else SimpleNamespace(name=backend)
        attention = SimpleNamespace(backend=named)
        return engine(device_config__device_type="cuda", attention_config=attention)

    made.platform = platform
    return made


@pytest.mark.parametrize("given", [None, "", "0", "true"])
def test_a_gpu_is_refused_and_the_way_in_is_named(gpu, monkeypatch, given):
    if given is not None:
        monkeypatch.setenv(UNTESTED_GPU, given)
    with pytest.raises(ValueError, match="never been run.* Set VRGA_ENGINE_UNTESTED_GPU=1"):
        admit(gpu(), request("paper"), None)
    admit(gpu(), request(None), None)


@pytest.mark.parametrize("backend", [None, "FLASH_ATTN"])
def test_a_gpu_steers_where_it_was_asked_for(gpu, monkeypatch, backend):
    monkeypatch.setenv(UNTESTED_GPU, "1")
    asked = request("paper")
    admit(gpu(backend), asked, None)
    assert PLAN in asked.sampling_params.extra_args


def test_other_attention_than_ours_is_refused_all_the_same(gpu, monkeypatch):
    monkeypatch.setenv(UNTESTED_GPU, "1")
    with pytest.raises(ValueError, match="by FLASHINFER is not ours: .*--attention-backend"):
        admit(gpu("FLASHINFER"), request("paper"), None)
    gpu.platform.is_rocm = lambda: True
    with pytest.raises(ValueError, match="on ROCm is not ours"):
        admit(gpu(), request("paper"), None)


@pytest.mark.parametrize("given", [None, "0", "1"])
def test_the_engines_attention_on_a_gpu_is_replaced_where_it_was_asked_for(monkeypatch, given):
    """In its place full CUDA graphs are gone, for all requests."""
    monkeypatch.delenv(UNTESTED_GPU, raising=False)
    if given is not None:
        monkeypatch.setenv(UNTESTED_GPU, given)
    names = SimpleNamespace(CPU_ATTN="cpu", FLASH_ATTN="flash")
    told = {}
    module(monkeypatch, "vllm.v1.attention.backends.registry", AttentionBackendEnum=names,
           register_backend=told.__setitem__)  # fmt: skip
    hook_attention()
    assert set(told) == {"cpu", *(["flash"] if given == "1" else [])}


@pytest.mark.parametrize("inside", [False, True], ids=["as ever", "asynchronous"])
def test_reports_go_out_with_what_the_scheduler_gets(monkeypatch, inside):
    """Where tokens are fetched later, as on a GPU, an outer result goes back at first."""

    class Later:
        def __init__(self):
            self._model_runner_output = SimpleNamespace()

    class Runner:
        def _model_forward(self):
            raise AssertionError

        def sample_tokens(self):
            return Later() if inside else SimpleNamespace()

    module(monkeypatch, "vllm.forward_context", get_forward_context=None)
    module(monkeypatch, "vllm.v1.worker.gpu_model_runner", GPUModelRunner=Runner,
           AsyncGPUModelRunnerOutput=Later)  # fmt: skip
    hook_runner()
    runner = Runner()
    runner.vrga_reports = {"r0": {}}
    output = runner.sample_tokens()
    assert (output._model_runner_output if inside else output).vrga_reports == {"r0": {}}
    assert "vrga_reports" not in vars(runner)
