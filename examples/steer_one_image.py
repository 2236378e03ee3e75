"""Answer one question about one image, with and without VRGA.

Run: python examples/steer_one_image.py [IMAGE QUESTION MODEL]

Without arguments: the small model inside the package, which reads letters in colours.
"""

import sys

from PIL import Image

import vrga
from vrga.demo.data import make_samples

if len(sys.argv) > 3:
    image, question, name = Image.open(sys.argv[1]), sys.argv[2], sys.argv[3]
else:
    sample = make_samples(1, seed=5)[0]
    image, question, name = sample.image, sample.question, None

model, processor = vrga.load(name)
content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
chat = [{"role": "user", "content": content}]
inputs = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device)


def answer() -> str:
    """What the model says now, patched or not."""
    output = model.generate(**inputs, max_new_tokens=256, do_sample=False)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


print(question)
print("without:", answer())
with vrga.patch(model) as patch:  # by vrga_config.json of the checkpoint, else the paper's numbers
    print("steered:", answer())
    print(patch)
