"""A shop's own world, made from its catalogue: queries for its products, graded by the rule book."""
