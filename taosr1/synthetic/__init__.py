"""The synthetic shop: invented products and queries with known grades, from which every stage can run offline."""
