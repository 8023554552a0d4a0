"""Astroformer: https://github.com/Rishit-dagli/Astroformer, built on timm, with CoAtNet's names."""

from keras_hybrid.convert.coatnet import map_weights

__all__ = ["map_weights"]
