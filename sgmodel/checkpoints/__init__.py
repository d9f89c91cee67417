"""Read and write weights: checkpoint folders, cards, released files, the Hugging Face hub."""
