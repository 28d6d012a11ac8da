"""What scripts/random-fixtures computes: every class of fixtures, in float64, from the published mathematics."""
