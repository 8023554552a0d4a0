"""The zoo: one module per family, and the registry they register in."""

from keras_hybrid.applications.astroformer import Astroformer
from keras_hybrid.applications.atc import ATC
from keras_hybrid.applications.base import embedding_model
from keras_hybrid.applications.botnet import BoTNet
from keras_hybrid.applications.cct import CCT, CVT, ViTLite
from keras_hybrid.applications.coatnet import CoAtNet
from keras_hybrid.applications.conformer import Conformer
from keras_hybrid.applications.convit import ConViT
from keras_hybrid.applications.convolutional_vision_transformer import CvT
from keras_hybrid.applications.efficientnet import EfficientNet
from keras_hybrid.applications.efficientnet_vit import EfficientNetViT
from keras_hybrid.applications.face_transformer import FaceTransformer
from keras_hybrid.applications.facerec import FaceRec
from keras_hybrid.applications.facerec_small import FaceRecSmall
from keras_hybrid.applications.features import feature_model
from keras_hybrid.applications.fusion import Ensemble, LateFusion
from keras_hybrid.applications.iresnet import IResNet
from keras_hybrid.applications.kprpe import KPRPE
from keras_hybrid.applications.margin_model import MarginModel
from keras_hybrid.applications.mobilefacenet import MobileFaceNet
from keras_hybrid.applications.mobilenet_v2 import MobileNetV2
from keras_hybrid.applications.nat import NAT
from keras_hybrid.applications.registry import ModelInfo, create_model, list_models, model_info
from keras_hybrid.applications.resizing import transfer_weights
from keras_hybrid.applications.resnet import ResNet
from keras_hybrid.applications.resnet_fct import ResNetFCT
from keras_hybrid.applications.san import SAN
from keras_hybrid.applications.swin import Swin
from keras_hybrid.applications.vit import ViT, ViTB16, ViTS16, ViTTi16

__all__ = [
    "ATC",
    "CCT",
    "CVT",
    "KPRPE",
    "NAT",
    "SAN",
    "Astroformer",
    "BoTNet",
    "CoAtNet",
    "ConViT",
    "Conformer",
    "CvT",
    "EfficientNet",
    "EfficientNetViT",
    "Ensemble",
    "FaceRec",
    "FaceRecSmall",
    "FaceTransformer",
    "IResNet",
    "LateFusion",
    "MarginModel",
    "MobileFaceNet",
    "MobileNetV2",
    "ModelInfo",
    "ResNet",
    "ResNetFCT",
    "Swin",
    "ViT",
    "ViTB16",
    "ViTLite",
    "ViTS16",
    "ViTTi16",
    "create_model",
    "embedding_model",
    "feature_model",
    "list_models",
    "model_info",
    "transfer_weights",
]
