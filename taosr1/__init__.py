"""taosr1: an open implementation of TaoSR1, the thinking model for e-commerce relevance search (arXiv 2508.12365)."""

__version__ = "0.1.0"
