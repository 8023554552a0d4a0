"""The report's hybrid, https://github.com/Debargha-Mitra-Roy/Face-Transformer (MIT)."""

from keras_hybrid.convert.efficientnet import map_trunk
from keras_hybrid.convert.face_transformer import map_classifier, map_encoder
from keras_hybrid.convert.mapping import TorchMapping


def map_weights(mapping: TorchMapping) -> None:
    """Names of the report's ``EfficientNet_Trim_ViT``."""
    map_trunk(mapping, "pt_model_trim.")
    map_encoder(mapping, "vit.")
    map_classifier(mapping)
    # A second classifier and the trunk's last convolution, neither of which anything feeds.
    mapping.ignore("vit.loss.weight", "dummy_var.weight")
