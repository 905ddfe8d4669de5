"""How good it is: metrics, intervals and reports."""
