"""The embedded shop: invented products and queries with known grades."""
