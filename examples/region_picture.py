"""Draw where a question looks: the relevance map, the region, and which heads found it.

Run: python examples/region_picture.py        # writes region.png and heads.png
"""

import vrga
from vrga.demo.data import make_samples, messages
from vrga.plots import region_figure, save, scatter_figure

model, processor = vrga.load()
sample = make_samples(1, seed=9, noise=60)[0]
inputs = processor.apply_chat_template(
    messages(sample, "direct"),
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)

with vrga.patch(model) as patch:
    model.generate(**inputs, max_new_tokens=1)  # the region is known after the prompt
    region = patch.region[0]

print(region)
print("question:", region.question)
print("heads that look (layer, head):", region.visual.nonzero().tolist())
print(save(region_figure([sample.image], region, title=sample.question), "region.png"))
print(save(scatter_figure(region, title="heads at the question"), "heads.png"))
