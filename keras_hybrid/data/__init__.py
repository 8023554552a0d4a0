"""Data: from folders, archives, tables, arrays, RecordIO, shards and TFDS to batches.

Image sources (:func:`open_source`) give random access to labelled images; :class:`FaceDetector`
finds faces in photographs, :func:`align_face` cuts one out and :func:`write_crops` those of a whole
collection; :func:`load_arrays` decodes a source once; :class:`Batches` feeds
``model.fit`` and can be resumed anywhere; :func:`face_augmentation` varies face crops and
:func:`image_augmentation` other images; :func:`synthetic_identities` invents people where there is
no photograph; :func:`read_pairs` and :func:`read_verification_set` read verification protocols.
"""

from keras_hybrid.data.alignment import (
    AlignedSource,
    align_face,
    face_template,
    similarity_transform,
)
from keras_hybrid.data.array_sources import ArraySource, NpzSource, TFDSSource
from keras_hybrid.data.augmentation import FaceAugmentation, face_augmentation
from keras_hybrid.data.batches import Batches
from keras_hybrid.data.bin_pairs import read_bin
from keras_hybrid.data.detection import Crops, Face, FaceDetector, write_crops
from keras_hybrid.data.files import UnreadableImageError
from keras_hybrid.data.landmarks import normalize_landmarks, read_landmarks
from keras_hybrid.data.layer_augmentation import LayerAugmentation, image_augmentation
from keras_hybrid.data.loading import LoadedImages, load_arrays
from keras_hybrid.data.opening import open_source
from keras_hybrid.data.pairs import PairList, make_pairs, read_lfw_pairs
from keras_hybrid.data.pillow_augmentation import RandAugment, RandomResizedCrop
from keras_hybrid.data.recordio import RecordIOSource
from keras_hybrid.data.shards import ShardSource, write_shards
from keras_hybrid.data.sources import (
    CSVSource,
    FolderSource,
    ImageSource,
    Subset,
    ZipSource,
    sample_per_class,
    split_source,
)
from keras_hybrid.data.synthetic import synthetic_identities
from keras_hybrid.data.verification_sets import (
    VerificationSet,
    list_verification_sets,
    read_pairs,
    read_verification_set,
    verification_set_info,
)

__all__ = [
    "AlignedSource",
    "ArraySource",
    "Batches",
    "CSVSource",
    "Crops",
    "Face",
    "FaceAugmentation",
    "FaceDetector",
    "FolderSource",
    "ImageSource",
    "LayerAugmentation",
    "LoadedImages",
    "NpzSource",
    "PairList",
    "RandAugment",
    "RandomResizedCrop",
    "RecordIOSource",
    "ShardSource",
    "Subset",
    "TFDSSource",
    "UnreadableImageError",
    "VerificationSet",
    "ZipSource",
    "align_face",
    "face_augmentation",
    "face_template",
    "image_augmentation",
    "list_verification_sets",
    "load_arrays",
    "make_pairs",
    "normalize_landmarks",
    "open_source",
    "read_bin",
    "read_landmarks",
    "read_lfw_pairs",
    "read_pairs",
    "read_verification_set",
    "sample_per_class",
    "similarity_transform",
    "split_source",
    "synthetic_identities",
    "verification_set_info",
    "write_crops",
    "write_shards",
]
