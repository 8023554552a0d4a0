"""The zoo: one module per family, and the registry they register in."""

from keras_hybrid.applications.base import embedding_model
from keras_hybrid.applications.cct import CCT, CVT, ViTLite
from keras_hybrid.applications.face_transformer import FaceTransformer
from keras_hybrid.applications.facerec import FaceRec
from keras_hybrid.applications.facerec_small import FaceRecSmall
from keras_hybrid.applications.iresnet import IResNet
from keras_hybrid.applications.margin_model import MarginModel
from keras_hybrid.applications.mobilefacenet import MobileFaceNet
from keras_hybrid.applications.mobilenet_v2 import MobileNetV2
from keras_hybrid.applications.registry import ModelInfo, create_model, list_models, model_info
from keras_hybrid.applications.vit import ViT, ViTB16, ViTS16, ViTTi16

__all__ = [
    "CCT",
    "CVT",
    "FaceRec",
    "FaceRecSmall",
    "FaceTransformer",
    "IResNet",
    "MarginModel",
    "MobileFaceNet",
    "MobileNetV2",
    "ModelInfo",
    "ViT",
    "ViTB16",
    "ViTLite",
    "ViTS16",
    "ViTTi16",
    "create_model",
    "embedding_model",
    "list_models",
    "model_info",
]
