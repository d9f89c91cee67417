"""Split samples by blocks of ground."""
