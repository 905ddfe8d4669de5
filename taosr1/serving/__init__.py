"""How it is deployed: one prefill per product, then tiers."""
