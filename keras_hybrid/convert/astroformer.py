"""Astroformer: https://github.com/Rishit-dagli/Astroformer (Apache-2.0), with CoAtNet's names."""

from keras_hybrid.convert.coatnet import map_weights

__all__ = ["map_weights"]
