"""The plug-in is loud: an unknown version, a hook that finds nothing, a server without it."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from vrga.config import VRGAConfig
from vrga.engine import plugin
from vrga.engine.hooks import wrap
from vrga.engine.plan import PLAN, Plan
from vrga.engine.scheduler import add_summary, cacheable, looked_up, summary_of, take_reports
from vrga.engine.serve import check_installed


def module(monkeypatch, name, **held):
    """A stand-in for a module, and for the packages around it."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        whole = ".".join(parts[:i])
        if whole not in sys.modules:
            monkeypatch.setitem(sys.modules, whole, ModuleType(whole))
    vars(sys.modules[name]).update(held)
    return sys.modules[name]


class Processor:
    """As much of vLLM's as the hook of admission wraps."""

    def process_inputs(self, vrga):
        feature = SimpleNamespace(modality="image", mm_position=SimpleNamespace(offset=1, length=4))
        params = SimpleNamespace(extra_args={} if vrga is None else {"vrga": vrga})
        return SimpleNamespace(sampling_params=params, mm_features=[feature])


@pytest.fixture
def vllm(monkeypatch):
    """A vLLM of a version that nobody tested; returns its class of processors."""
    monkeypatch.delenv("VRGA_ENGINE_DEFAULT", raising=False)
    module(monkeypatch, "vllm", __version__="9.9.0+cpu")
    refused = type("VLLMValidationError", (Exception,), {})
    module(monkeypatch, "vllm.exceptions", VLLMValidationError=refused)
    own = type("InputProcessor", (Processor,), {})
    module(monkeypatch, "vllm.v1.engine.input_processor", InputProcessor=own)
    return own


def processor(own):
    found = own()
    found.vllm_config = SimpleNamespace(model_config=SimpleNamespace(model=""))
    return found


def test_a_version_that_was_not_tested_refuses_what_asks_and_serves_the_rest(vllm):
    plugin.register()
    plugin.register()  # in one process it may be called twice
    refused = sys.modules["vllm.exceptions"].VLLMValidationError  # a server answers it with 400
    with pytest.raises(refused, match=r"vLLM 9\.9\.0 was not tested .* tested: 0\.32\.0"):
        processor(vllm).process_inputs("paper")
    with pytest.raises(ValueError, match="not tested"):  # and in Python it is as ever
        processor(vllm).process_inputs("paper")
    silent = processor(vllm).process_inputs(None)
    assert silent.sampling_params.extra_args == {}


def test_a_hook_that_finds_nothing_refuses_what_asks(vllm, monkeypatch):
    monkeypatch.setattr(sys.modules["vllm"], "__version__", plugin.TESTED[0])
    plugin.register()
    with pytest.raises(ValueError, match="the plug-in could not be put in"):
        processor(vllm).process_inputs({"gain": 2})
    assert processor(vllm).process_inputs(False)


def test_where_requests_cannot_be_seen_the_engine_does_not_start(monkeypatch):
    module(monkeypatch, "vllm", __version__="9.9.0")
    module(monkeypatch, "vllm.exceptions", VLLMValidationError=RuntimeError)
    module(monkeypatch, "vllm.v1.engine.input_processor", InputProcessor=type("Empty", (), {}))
    with pytest.raises(RuntimeError, match="would answer those that ask to be steered unsteered"):
        plugin.register()


def test_a_default_that_is_none_stops_the_server(vllm, monkeypatch):
    monkeypatch.setenv("VRGA_ENGINE_DEFAULT", "papper")
    with pytest.raises(ValueError, match="VRGA_ENGINE_DEFAULT='papper'"):
        plugin.register()


def test_a_method_is_wrapped_once():
    class Own:
        def add(self, a, b=0):
            return a + b

    for _ in range(3):
        wrap(Own, "add", lambda own, self, *args, **kwargs: 10 * own(self, *args, **kwargs))
    assert Own().add(1, b=2) == 30
    with pytest.raises(RuntimeError, match="this vLLM has no Own.gone"):
        wrap(Own, "gone", print)


def test_a_server_is_not_started_without_the_plug_in(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="vrga serve needs vLLM"):
        check_installed()
    monkeypatch.undo()
    module(monkeypatch, "vllm", __version__="9.9.0", __spec__=SimpleNamespace())
    with pytest.raises(ImportError, match="vLLM 9.9.0 was not tested"):
        check_installed()
    sys.modules["vllm"].__version__ = plugin.TESTED[0]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [])
    with pytest.raises(ImportError, match="not among the plug-ins of vLLM"):
        check_installed()
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ["vrga"])
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    with pytest.raises(ImportError, match="leaves vrga out"):
        check_installed()
    monkeypatch.setenv("VLLM_PLUGINS", "other,vrga")
    check_installed()


# --- the scheduler ---


def scheduled(config=None):
    """A request of the scheduler."""
    extra = None
    if config is not None:
        extra = {PLAN: Plan(config, 57, 51, ((4, 36),)).to_dict()}
    return SimpleNamespace(
        sampling_params=SimpleNamespace(extra_args=extra), num_tokens=90, block_hashes=[1, 2]
    )


def test_the_prefix_cache_ends_before_the_row_that_is_looked_at():
    plain, steered = scheduled(), scheduled(VRGAConfig())
    assert looked_up(plain) is plain
    # The cache leaves out the last token of what it is asked for.
    assert looked_up(steered).num_tokens - 1 == 51
    assert looked_up(scheduled(VRGAConfig.released())).num_tokens - 1 == 50
    assert looked_up(steered).block_hashes == [1, 2]


def test_no_keys_of_a_steered_answer_are_kept_for_others():
    plain, steered = scheduled(), scheduled(VRGAConfig())
    assert [cacheable(plain, n) for n in (32, 57, 90)] == [32, 57, 90]
    assert [cacheable(steered, n) for n in (32, 57, 90)] == [32, 57, 57]


def test_reports_are_added_up_and_steps_that_come_again_count_once():
    one, plain = scheduled(VRGAConfig.published(gain=2)), scheduled()
    scheduler = SimpleNamespace(requests={"a": one, "b": plain})
    region = {"boxes": [[(0.0, 0.0, 0.5, 0.5)]], "heads": [[1, 2]]}
    for report in ({"region": region}, {"share": [(0, 0.5)]}, {"share": [(1, 0.25)]},
                   {}, {"share": [(0, 0.5), (1, 0.25), (2, 0.75)]}):  # fmt: skip
        assert take_reports(scheduler, ["a", "b", "gone"], {"a": report}) == []
    output = SimpleNamespace(kv_transfer_params=None)
    add_summary(output, summary_of(one))
    assert output.kv_transfer_params["vrga"] == {
        "steered": True, "config": "published, gain 2", **region,
        "share": {"mean": 0.5, "steps": [0.5, 0.25, 0.75]},
    }  # fmt: skip
    assert summary_of(plain) is None


def test_a_request_that_no_worker_accounts_for_ends():
    one = scheduled(VRGAConfig())
    scheduler = SimpleNamespace(requests={"a": one})
    assert take_reports(scheduler, ["a"], {}) == ["a"]
    assert "gave no account of it" in summary_of(one).to_dict()["fault"]
    two = scheduled(VRGAConfig())
    scheduler.requests["b"] = two
    assert take_reports(scheduler, ["b"], {"b": {"fault": "broken"}}) == ["b"]
    assert summary_of(two).to_dict() == {
        "steered": False, "config": VRGAConfig().name, "fault": "broken"
    }  # fmt: skip
