"""Steer only where the model says that it looks back, and see what became of each step.

Run: python examples/look_back.py
"""

import vrga
from vrga import lookback
from vrga.demo.data import make_samples, messages

model, processor = vrga.load()  # a Look-Back checkpoint: vrga.load("semantic-back-7b")
sample = make_samples(1, seed=3)[0]
inputs = processor.apply_chat_template(
    messages(sample, "back"),
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)

with vrga.patch(model, when="back", tokenizer=processor.tokenizer) as patch:
    patch.query = sample.question  # the prompt goes on behind it
    output = model.generate(**inputs, max_new_tokens=96, do_sample=False)
    print(patch.steps[0])

text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
found = lookback.parse(text)
print("looks back at:", found.back)
print("answers:", found.answer, "- right" if found.answer == sample.color else "- wrong")
print(lookback.stats([text]))
