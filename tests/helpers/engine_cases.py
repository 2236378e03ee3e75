"""What the engine's tests share: an engine of the embedded model, and what transformers says."""

import os

import torch
from wide_heads import write_wide

import vrga
from vrga.config import VRGAConfig
from vrga.demo.data import PROMPTS, TEST_SEEDS, make_samples, prepare, split_options
from vrga.hf.checkpoints import load

TOKENS = 48
SMALL = dict(
    dtype="float32",
    enforce_eager=True,
    max_model_len=512,
    max_num_seqs=8,
    max_num_batched_tokens=512,
    num_gpu_blocks_override=96,
    block_size=32,
    max_logprobs=-1,
    logprobs_mode="raw_logits",
    limit_mm_per_prompt={"image": 3},
    enable_prefix_caching=False,
    disable_log_stats=True,
    seed=0,
)
# One request of each is asked in turn; None is not to be steered.
KINDS = {
    "base": None,
    "static": {"preset": "sparing"},
    "paper": {"preset": "paper"},
    "dynamic": {"preset": "published"},
}


def set_small():
    """Make engines of this process small; before vllm is imported."""
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, where a test can look at it
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def start(folder, **options):
    """An engine of the embedded model, which is written into `folder`."""
    from vllm import LLM

    return LLM(str(write_wide(folder)), **{**SMALL, **options})


def asked(kind, tokens=TOKENS, **more):
    """Sampling parameters of a request of one of `KINDS`, or of an object of its own."""
    from vllm import SamplingParams

    steering = KINDS[kind] if isinstance(kind, str) else kind
    extra = {} if steering is None else {"extra_args": {"vrga": steering}}
    greedy = {"temperature": 0} if more.get("n", 1) == 1 else {"temperature": 1, "top_k": 1}
    return SamplingParams(
        max_tokens=tokens, logprobs=-1, ignore_eos=True, **greedy, **extra, **more
    )


def prompt_of(sample, prompt="cot"):
    """A drawn question as vLLM takes it."""
    text = PROMPTS[prompt].format(question=sample.question)
    return {
        "prompt": "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        f"{text}<|im_end|>\n<|im_start|>assistant\n",
        "multi_modal_data": {"image": sample.image},
    }


def samples(count, split="clean"):
    """Held-out questions."""
    return make_samples(count, seed=TEST_SEEDS.start, **split_options(split))


def logits_of(output):
    """Logits of an answer, [T, V], and its tokens."""
    answer = output.outputs[0]
    rows = [[row[i].logprob for i in range(len(row))] for row in answer.logprobs]
    return torch.tensor(rows), list(answer.token_ids)


def config_of(kind):
    """What a request of a kind asks of `vrga.patch`; None for nothing."""
    steering = dict((KINDS[kind] if isinstance(kind, str) else kind) or {})
    if not steering:
        return None
    preset = steering.pop("preset")
    steering.pop("given", None)
    return VRGAConfig.named(preset) if not steering else getattr(VRGAConfig, preset)(**steering)


class Reference:
    """The same model in transformers.

    Args:
        folder: of its checkpoint.
    """

    def __init__(self, folder):
        self.model, self.processor = load(folder, dtype=torch.float32)

    def answer(self, sample, kind, tokens=TOKENS, prompt="cot", inputs=None, given=None):
        """(logits [T, V], tokens, region or None)."""
        if inputs is None:
            inputs = prepare(self.processor, [sample], prompt)
        config, found, region = config_of(kind), None, None
        if config is None:
            found = self._generate(inputs, tokens)
        else:
            with vrga.patch(self.model, config, tokenizer=self.processor.tokenizer) as patch:
                patch.given = given
                found = self._generate(inputs, tokens)
                region = patch.region[0]
        ids = found.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        return torch.stack(found.logits, 1)[0], ids, region

    def _generate(self, inputs, tokens):
        with torch.no_grad():
            return self.model.generate(
                **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                return_dict_in_generate=True, output_logits=True,
                eos_token_id=None,
            )  # fmt: skip
