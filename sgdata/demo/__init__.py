"""Run the whole chain on a simulated city and score it."""
