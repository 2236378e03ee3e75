"""Where requests come in: what vLLM has made of one is read, and its plan put into it."""

from __future__ import annotations

from typing import Any

from vrga.engine.admission import Picture, Reader, end_ids
from vrga.engine.device import refused_device
from vrga.engine.plan import PLAN
from vrga.engine.request import read_request

_KEPT = "vrga_reader"


def admit(processor: Any, request: Any, refusal: str | None) -> None:
    """Put the plan of a request into it, if it is to be steered.

    Args:
        processor: vLLM's, of inputs; request: as it made it for the engine.
        refusal: why none can be steered, or None.

    Raises:
        ValueError: what it asks cannot be done, or is none that is known.
    """
    params = request.sampling_params
    if params is None:  # of a pooling model
        return
    extra = params.extra_args or {}
    if PLAN in extra:
        raise ValueError(f"{PLAN} is made at admission: say what you want in vrga alone")
    config = processor.vllm_config
    asked = read_request(extra, config.model_config.model)
    if asked is None:
        return
    pictures = [
        Picture(one.modality, one.mm_position.offset, one.mm_position.length)
        for one in request.mm_features or ()
    ]
    if pictures and asked.config.steers:
        told = refusal or refused_engine(config) or refused_request(request)
        if told is not None:
            raise ValueError(
                f"this request asks to be steered, and that cannot be done here: {told}. Leave "
                "vrga out of it, or send vrga=false, for an answer that is not steered"
            )
    plan = reader_of(processor).admit(asked, request.prompt_token_ids, pictures)
    if plan is not None:
        params.extra_args = {**extra, PLAN: plan.to_dict()}


def reader_of(processor: Any) -> Reader:
    """The reader of prompts of an engine, made once."""
    found = vars(processor).get(_KEPT)
    if found is None:
        model = processor.vllm_config.model_config
        ends = end_ids(
            (model.try_get_generation_config() or {}).get("eos_token_id"),
            getattr(model.hf_text_config, "eos_token_id", None),
        )
        tokenizer = None if model.skip_tokenizer_init else processor.get_tokenizer()
        found = Reader(model.hf_config, model.model, tokenizer, ends)
        setattr(processor, _KEPT, found)
    return found


def refused_engine(config: Any) -> str | None:
    """Why an engine of this configuration steers nothing; None where it does."""
    parallel, cache = config.parallel_config, config.cache_config
    window = getattr(config.model_config.hf_text_config, "use_sliding_window", False)
    reasons = {
        "pipeline parallelism is not supported": parallel.pipeline_parallel_size > 1,
        "context parallelism is not supported": parallel.decode_context_parallel_size > 1
        or parallel.prefill_context_parallel_size > 1,
        "data parallelism is untested": parallel.data_parallel_size > 1,
        "speculative decoding is not supported": config.speculative_config is not None,
        "transfer of keys between engines is not supported": config.kv_transfer_config is not None,
        "keys in 8 bits are not supported (kv_cache_dtype)": cache.cache_dtype
        not in ("auto", "float32", "bfloat16", "float16"),
        "the V2 model runner is not supported (set VLLM_USE_V2_MODEL_RUNNER=0)": bool(
            config.use_v2_model_runner
        ),
        "models with sliding windows are not supported": bool(window),
    }
    told = next((told for told, holds in reasons.items() if holds), None)
    return told or refused_device(config)


def refused_request(request: Any) -> str | None:
    """Why this request is not steered in an engine that steers; None where it is."""
    reasons = {
        "LoRA is untested": request.lora_request is not None,
        "input that streams in is not supported": bool(request.resumable),
    }
    return next((told for told, holds in reasons.items() if holds), None)
