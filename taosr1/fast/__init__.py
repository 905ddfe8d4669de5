"""Everything that exists for speed alone; every function has a plain twin outside of this package."""
