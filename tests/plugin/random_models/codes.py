"""How the tensors of one random model are quantised: the kinds of codes, and scales that suit what arrives."""

from dataclasses import dataclass

import numpy as np

# What a model may hold, and how often: most scales come from the values, as a quantiser's do.
ODD_SCALES = [1e-30, 1e-12, 1e-6, 2.0**-20, 1.0, 255.0, 1e6, 1e20]


@dataclass(frozen=True)
class Codes:
    """What an 8-bit tensor's codes mean: `scale * (code - zero)`."""

    scale: np.float32
    zero: int
    element: type

    @property
    def lowest(self) -> int:
        return int(np.iinfo(self.element).min)

    @property
    def highest(self) -> int:
        return int(np.iinfo(self.element).max)

    def quantise(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            steps = np.nan_to_num(np.asarray(values, np.float32) / self.scale, nan=-1e9, posinf=1e9, neginf=-1e9)
        steps = np.clip(steps, self.lowest - self.zero, self.highest - self.zero)
        return (np.rint(steps) + self.zero).astype(self.element)

    def restore(self, codes: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return (codes.astype(np.int32) - self.zero).astype(np.float32) * self.scale


@dataclass(frozen=True)
class Style:
    """The quantiser's settings of one model."""

    activations: str  # "u8", "s8" or "mixed"
    symmetric: float  # share of activations with the zero point in the middle
    weights: str  # "s8", "u8" or "mixed"
    per_channel: float
    odd: float  # share of tensors whose scale or zero point no quantiser would choose

    @staticmethod
    def plain(random: np.random.Generator) -> "Style":
        """As quantisers' defaults are."""
        return Style(str(random.choice(["u8", "u8", "u8", "s8"])), float(random.choice([0, 1])), "s8", float(random.choice([0, 1])), 0)

    @staticmethod
    def random(random: np.random.Generator) -> "Style":
        return Style(
            activations=str(random.choice(["u8", "u8", "u8", "s8", "s8", "mixed"])),
            symmetric=float(random.choice([0, 0, 0.5, 1])),
            weights=str(random.choice(["s8", "s8", "s8", "u8", "mixed"])),
            per_channel=float(random.choice([0, 0.5, 1])),
            odd=float(random.choice([0, 0, 0.05, 0.3])),
        )

    def element(self, random: np.random.Generator, kind: str) -> type:
        if kind == "mixed":
            return np.uint8 if random.random() < 0.5 else np.int8
        return np.uint8 if kind == "u8" else np.int8

    def codes(self, random: np.random.Generator, values: np.ndarray) -> Codes:
        """Codes for a tensor that holds `values` on the sample."""
        element = self.element(random, self.activations)
        lowest, highest = int(np.iinfo(element).min), int(np.iinfo(element).max)
        finite = values[np.isfinite(values)]
        low, high = (float(min(finite.min(), 0)), float(max(finite.max(), 0))) if finite.size else (-1.0, 1.0)
        if random.random() < self.symmetric:
            scale, zero = max(-low, high) / 127, 128 + lowest
        else:
            scale = (high - low) / 255
            zero = lowest + round(-low / scale) if scale > 0 else lowest
        scale = scale if 1e-35 < scale < 1e35 else 1.0
        how = random.random()
        if how < 0.15:  # exact powers of two: many values lie on a rounding tie
            scale = 2.0 ** round(np.log2(scale))
        elif how < 0.25:  # a calibration set that saw less, or more
            scale *= random.choice([0.25, 0.7, 1.5, 4])
        if random.random() < self.odd:
            if random.random() < 0.5:
                zero = int(random.choice([lowest, highest, random.integers(lowest, highest + 1)]))
            else:
                scale = float(random.choice([*ODD_SCALES, scale * 100, scale / 100]))
        return Codes(np.float32(scale), int(np.clip(zero, lowest, highest)), element)
