"""Model sizes, batches and expected durations of a GPU check."""

from __future__ import annotations

from dataclasses import dataclass

from sgmodel.models import encoder, mae, upernet

REFERENCE_GB = 141
"""Memory of the device that `BATCH` was chosen for, in 10^9 bytes (NVIDIA H200)."""

# Samples per step. Estimated from about 50 bytes per token, channel and block under bf16 autocast, so that a step
# takes between half and two thirds of the memory; not searched, so that every machine of a kind runs the same step.
BATCH = {
    ("pretrain", "base", 128): 512,
    ("pretrain", "large", 128): 384,
    ("pretrain", "huge", 128): 256,
    ("pretrain", "base", 224): 192,
    ("classify", "base", 128): 192,
    ("segment", "base", 128): 96,
    ("detect_change", "base", 128): 64,
    ("predict", "base", 128): 128,
}
TINY_BATCH = 4
STEP = 8
"""Batches scaled to less memory are multiples of this, so that matrix shapes stay favourable."""

ENCODERS = {"base": encoder.base, "large": encoder.large, "huge": encoder.huge}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of the models, batches and samples of a check.

    Attributes:
        tiny: Models of one block and images of 32 px, to run every part on a CPU within two minutes.
        memory_gb: Memory of the device in 10^9 bytes.
    """

    tiny: bool
    memory_gb: float

    @property
    def warmup(self) -> int:
        """Steps before the timed ones."""
        return 1 if self.tiny else 4

    @property
    def steps(self) -> int:
        """Timed steps."""
        return 2 if self.tiny else 12

    @property
    def loss_steps(self) -> int:
        """Steps over which the losses of two precisions are compared."""
        return 50

    @property
    def stored(self) -> int:
        """Samples written to the shards that the data-loading part reads."""
        return 16 if self.tiny else 1024

    @property
    def scene(self) -> tuple[int, int]:
        """Rows and columns of the scene to predict on, in pixels."""
        return (64, 128) if self.tiny else (1024, 8192)

    def px(self, px: int) -> int:
        """Return the side of the images that are used instead of images of `px` pixels."""
        return px // 4 if self.tiny else px

    def batch(self, task: str, size: str, px: int) -> int:
        """Return the samples per step for this device's memory."""
        if self.tiny:
            return TINY_BATCH
        scaled = int(BATCH[task, size, px] * min(1.0, self.memory_gb / REFERENCE_GB))
        return max(STEP, scaled // STEP * STEP)

    def encoder(self, size: str, px: int) -> encoder.EncoderConfig:
        """Return the encoder's configuration for images of `px` pixels."""
        if self.tiny:
            return encoder.EncoderConfig(image_px=self.px(px), width=32, depth=1, heads=2)
        return ENCODERS[size](image_px=px)

    @property
    def decoder(self) -> mae.DecoderConfig:
        """Return the decoder for pretraining."""
        return mae.DecoderConfig(width=32, depth=1, heads=2) if self.tiny else mae.DecoderConfig()

    def head(self, *, dropout_levels: float) -> upernet.HeadConfig:
        """Return the dense head's configuration."""
        if not self.tiny:
            return upernet.HeadConfig(dropout_levels=dropout_levels)
        return upernet.HeadConfig(levels=(32, 32, 32, 32), hidden=(32, 32, 32), width=16, dropout_levels=dropout_levels)
