"""Feed models: loading, normalisation, band selection, augmentation."""
