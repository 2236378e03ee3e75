"""Evaluate a model on benchmarks with and without VRGA: the same as `vrga eval`.

    python benchmarks/evaluate.py --model Qwen/Qwen2.5-VL-7B-Instruct --tasks pope,mmstar \\
        --compare --output out/pope
"""

import sys

from vrga.evaluation.command import WRONG, main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, ImportError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        sys.exit(WRONG)
