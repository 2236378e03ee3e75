"""Names, in annotations, for what transformers and its kin make.

What such an object must have is looked for where it is used, and named where it lacks; its class
declares little of it (a module's attributes are tensors or modules to a type checker).
"""

from typing import Any

Model = Any  # a PreTrainedModel, or a module around one
Config = Any
Processor = Any
Tokenizer = Any
Cache = Any
ModelOutput = Any
BatchFeature = Any  # what a processor gives: a model's inputs by their names, with .to(device)
