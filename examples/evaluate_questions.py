"""Ask a file of questions with and without VRGA, and compare the answers pair by pair.

Run: python examples/evaluate_questions.py [QUESTIONS.jsonl MODEL]

A line of the file: {"image": "a.png", "question": ..., "answer": ..., "box": [left, top, right,
bottom]}. Without arguments it writes such a file of drawn questions, for the small model inside
the package. The command for large runs, which can be resumed, is `vrga eval`.
"""

import json
import sys
from pathlib import Path

from PIL import Image

import vrga
from vrga.demo.data import make_samples
from vrga.intervals import paired_difference, wilson

if len(sys.argv) > 2:
    path, name = Path(sys.argv[1]), sys.argv[2]
else:
    path, name = Path("questions/questions.jsonl"), None
    path.parent.mkdir(exist_ok=True)
    lines = []
    for i, sample in enumerate(make_samples(12, seed=100, fade=0.5)):
        sample.image.save(path.parent / f"{i}.png")
        line = {"image": f"{i}.png", "question": sample.question, "answer": sample.color,
                "box": sample.box}  # fmt: skip
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines))

model, processor = vrga.load(name)
questions = [json.loads(line) for line in path.read_text().splitlines()]
images = [Image.open(path.parent / one["image"]).convert("RGB") for one in questions]
texts = []
for one in questions:
    content = [{"type": "image"}, {"type": "text", "text": one["question"]}]
    chat = [{"role": "user", "content": content}]
    texts.append(processor.apply_chat_template(chat, add_generation_prompt=True))
processor.tokenizer.padding_side = "left"  # generation goes on at the right
inputs = processor(text=texts, images=images, padding=True, return_tensors="pt").to(model.device)


def right() -> list[int]:
    """Of each question, whether the last word that is said is its answer."""
    output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    said = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :],
                                  skip_special_tokens=True)  # fmt: skip
    return [
        int(one["answer"] == text.replace("}", " ").replace("{", " ").split()[-1])
        for one, text in zip(questions, said, strict=True)
    ]


base = right()
with vrga.patch(model):
    steered = right()
print("without VRGA: {:.0%} right (95 %: {:.0%} to {:.0%})".format(*wilson(base)))
change, low, high = paired_difference(steered, base)
told = f"95 %: {low:+.0%} to {high:+.0%}" if low == low else "too few, or too much alike, to tell"
print(f"difference: {change:+.0%} ({told})")
print("Twelve questions cannot tell more; see docs/results.md for what a thousand do.")
