"""The bundled evidence teacher: it explains a known grade by what a query asks and what a product's text shows."""

from taosr1.task.evidence.teacher import Explained, explain
from taosr1.task.evidence.vocabulary import Vocabulary

__all__ = ["Explained", "Vocabulary", "explain"]
