"""ResNet-FCT: no code was published; these are the names of a PyTorch prototype of our reading."""

from keras_hybrid.convert.mapping import TorchMapping
from keras_hybrid.convert.resnet import map_residual_network


def map_weights(mapping: TorchMapping) -> None:
    """Names of the prototype, whose backbone is pytorch-cifar's ``ResNet50``."""
    map_residual_network(mapping, prefix="r.", shortcut="shortcut")
    for i in range(mapping.count("fct{}_patches")):
        mapping.dense(f"fct{i}_projection", f"f.{i}.g")
        mapping.conv(f"fct{i}_patches", f"f.{i}.pe")
        for j in range(3):
            mapping.conv(f"fct{i}.depthwise.{j}", f"f.{i}.dw.{j}")
            mapping.norm(f"fct{i}.norms.{j}", f"f.{i}.n.{j}")
        mapping.norm(f"fct{i}.focus_norm", f"f.{i}.n.3")
        mapping.conv(f"fct{i}.focus", f"f.{i}.fl")
    mapping.dense("predictions", "fc", optional=True)
