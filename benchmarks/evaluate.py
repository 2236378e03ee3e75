"""Evaluate a model on benchmarks with and without VRGA: the same as `vrga eval`.

    python benchmarks/evaluate.py --model Qwen/Qwen2.5-VL-7B-Instruct --tasks pope,mmstar \\
        --compare --output out/pope
"""

import sys

from vrga.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
