"""taosr1: an open implementation of TaoSR1, the thinking model for e-commerce relevance search (arXiv 2508.12365)."""

from taosr1.moved import keep_old_paths

__version__ = "0.1.0"
__all__ = ["Judge"]

keep_old_paths()


def __getattr__(name: str) -> object:
    """`from taosr1 import Judge` loads torch and the model's code only where it is asked for."""
    if name == "Judge":
        from taosr1.judge import Judge

        return Judge
    raise AttributeError(f"module 'taosr1' has no attribute {name!r}")
