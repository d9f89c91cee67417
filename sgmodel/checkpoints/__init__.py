"""Read and write weights: checkpoint folders, cards, published files, the Hugging Face hub."""
