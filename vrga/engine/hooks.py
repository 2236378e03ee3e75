"""Where vLLM is entered: each hook wraps one method of it, and says what it adds."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_MARK = "vrga_hook"
_SERVER = "vllm.entrypoints.launchers.api_server"


def wrap(owner: type | ModuleType, name: str, around: Callable[..., Any]) -> None:
    """Put a function around a method, or a module's function; once, however often it is called.

    Args:
        around: takes the method, and what it is called with.

    Raises:
        RuntimeError: there is no such method.
    """
    own = getattr(owner, name, None)
    if own is None:
        raise RuntimeError(f"this vLLM has no {owner.__name__}.{name}, which steering needs")
    if hasattr(own, _MARK):
        return

    @functools.wraps(own)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(own, *args, **kwargs)

    setattr(wrapped, _MARK, True)
    setattr(owner, name, wrapped)


def hook_admission(refusal: str | None) -> None:
    """Requests are read as they come in.

    Args:
        refusal: why none can be steered, or None.
    """
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.input_processor import InputProcessor

    from vrga.engine.door import admit

    class RefusedRequest(VLLMValidationError, ValueError):
        """What a server answers with status 400, and what is a ValueError in Python."""

    def process_inputs(own: Callable, processor: Any, *args: Any, **kwargs: Any) -> Any:
        request = own(processor, *args, **kwargs)
        try:
            admit(processor, request, refusal)
        except ValueError as error:
            raise RefusedRequest(str(error)) from error
        return request

    def init(own: Callable, processor: Any, *args: Any, **kwargs: Any) -> None:
        own(processor, *args, **kwargs)
        if _SERVER in sys.modules:  # one is made before what serves is
            hook_streams()

    wrap(InputProcessor, "process_inputs", process_inputs)
    wrap(InputProcessor, "__init__", init)


def hook_streams() -> None:
    """Streamed chats tell where they looked; in a server alone, whose modules take long to load."""
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat

    from vrga.engine.streams import telling

    wrap(OpenAIServingChat, "chat_completion_stream_generator", telling)


def hook_prefix_cache() -> None:
    """The prefix cache ends before a steered question, and keeps no steered answer."""
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    from vrga.engine.scheduler import cacheable, looked_up

    def get_computed_blocks(own: Callable, manager: Any, request: Any) -> Any:
        return own(manager, looked_up(request))

    def cache_blocks(own: Callable, coordinator: Any, request: Any, tokens: int) -> None:
        own(coordinator, request, cacheable(request, tokens))

    wrap(KVCacheManager, "get_computed_blocks", get_computed_blocks)
    wrap(KVCacheCoordinator, "cache_blocks", cache_blocks)


def hook_reports() -> None:
    """What workers report reaches the client; what cannot be steered ends with an error."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from vrga.engine.scheduler import add_summary, summary_of, take_reports

    def update_from_output(own: Callable, scheduler: Any, scheduled: Any, output: Any) -> Any:
        names = list(scheduled.num_scheduled_tokens)
        ends = take_reports(scheduler, names, getattr(output, "vrga_reports", {}))
        # Taken now: a request that ends is not kept.
        summaries = {
            name: summary_of(scheduler.requests[name])
            for name in names
            if name in scheduler.requests
        }
        scheduler.grammar_compile_error_reqs.update(ends)  # which end with an error of their own
        found = own(scheduler, scheduled, output)
        for outputs in found.values():
            for one in outputs.outputs:
                if one.finish_reason is not None:
                    summary = summaries.get(one.request_id)
                    if summary is not None:
                        add_summary(one, summary)
        return found

    wrap(Scheduler, "update_from_output", update_from_output)


def hook_runner() -> None:
    """Passes of the model are steered, and reported with their tokens."""
    from vllm.forward_context import get_forward_context
    from vllm.v1.worker.gpu_model_runner import AsyncGPUModelRunnerOutput, GPUModelRunner

    from vrga.engine.runner import run
    from vrga.engine.worker import worker_of

    def model_forward(own: Callable, runner: Any, *args: Any, **kwargs: Any) -> Any:
        batch, metadata = runner.input_batch, get_forward_context().attn_metadata
        records = [runner.requests[name] for name in batch.req_ids]
        if not any(record.sampling_params and record.sampling_params.extra_args
                   for record in records):  # fmt: skip
            return own(runner, *args, **kwargs)
        one = next(iter(metadata.values()))
        output, runner.vrga_reports = run(
            worker_of(runner),
            records,
            one.query_start_loc.tolist(),
            one.seq_lens.tolist(),
            runner.input_ids.gpu,
            lambda: own(runner, *args, **kwargs),
        )
        return output

    def sample_tokens(own: Callable, runner: Any, *args: Any, **kwargs: Any) -> Any:
        output = own(runner, *args, **kwargs)
        reports = vars(runner).pop("vrga_reports", None)
        if reports:
            # Where scheduling is asynchronous, the scheduler gets what stands inside.
            inside = isinstance(output, AsyncGPUModelRunnerOutput)
            (output._model_runner_output if inside else output).vrga_reports = reports
        return output

    wrap(GPUModelRunner, "_model_forward", model_forward)
    wrap(GPUModelRunner, "sample_tokens", sample_tokens)


def hook_rebinding() -> None:
    """A second engine in one process starts beside numba.

    vLLM looks at all that any module has, and fails at llvmlite's, which numba brings.
    """
    from vllm.triton_utils import dispatcher

    def rebind_kernels(own: Callable, *args: Any) -> None:
        hidden = [name for name in sys.modules if name.partition(".")[0] == "llvmlite"]
        kept = {name: sys.modules.pop(name) for name in hidden}
        try:
            own(*args)
        finally:
            sys.modules.update(kept)

    wrap(dispatcher, "_rebind_kernels", rebind_kernels)


def hook_attention() -> None:
    """The layers' attention on a CPU is ours, around the engine's own; on a GPU where it may be."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from vrga.engine.device import gpu_allowed

    register_backend(AttentionBackendEnum.CPU_ATTN, "vrga.engine.cpu_attention.SteeredCPUBackend")
    if gpu_allowed():  # it costs unsteered requests the full CUDA graphs
        register_backend(
            AttentionBackendEnum.FLASH_ATTN, "vrga.engine.cuda_attention.SteeredFlashBackend"
        )
