"""SpectralGPT, its heads, and the baselines it is compared with."""
