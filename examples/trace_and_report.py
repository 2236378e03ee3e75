"""Record where every head looked, with and without steering, and make a page of both runs.

Run: python examples/trace_and_report.py      # writes traces/ and report.html
"""

import vrga
from vrga.demo.data import make_samples, messages
from vrga.report import write_report

model, processor = vrga.load()
sample = make_samples(1, seed=11, noise=60)[0]
inputs = processor.apply_chat_template(
    messages(sample, "cot"),
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)

for name, gain in {"base": 1, "steered": 3}.items():
    with vrga.patch(model, gain=gain, tokenizer=processor.tokenizer) as patch:
        patch.query = sample.question
        with patch.record(maps="visual") as trace:
            model.generate(**inputs, max_new_tokens=96, do_sample=False)
        looking = trace.region[:, :, 0][:, patch.region[0].visual].mean()
    print(f"{name}: {looking:.1%} of the visual heads' attention is on the region")
    trace.attach(images=[[sample.image]]).save(f"traces/{name}")

print(write_report(["traces/base", "traces/steered"], "report.html"))
