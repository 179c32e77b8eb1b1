"""Methods: two-tower matchers and the rankers that teach them."""
