"""A base for layers that are made of Keras's layers."""

import keras
from keras.dtype_policies import DTypePolicyMap

__all__: list[str] = []


class CompositeLayer(keras.layers.Layer):
    """A layer with dense layers within, of which a file says which are quantized.

    `keras.Model.quantize` changes the policy of each dense layer. A file of the model holds the
    configurations of what the model is made of, not of what is within: the policies of that travel
    in this layer's own ``dtype``, as a `keras.dtype_policies.DTypePolicyMap`. Without them, as in
    Keras's own composite layers (Keras 3.15), a quantized model's file cannot be loaded.
    """

    def policy_within(self, name: str, policy=None):
        """Return the policy of a dense layer within.

        Args:
            name: Of the layer.
            policy: What it has where it is not quantized; default this layer's own.
        """
        policies = self.dtype_policy
        if not isinstance(policies, DTypePolicyMap):
            return policy or policies
        path = f"{self.path}/{name}"
        if path in policies:
            return policies[path]
        return policy or policies.default_policy

    def get_config(self):
        config = super().get_config()
        quantized = [
            layer for layer in self._flatten_layers(include_self=False) if layer.quantization_mode
        ]
        if quantized:
            default = self.dtype_policy
            if isinstance(default, DTypePolicyMap):
                default = default.default_policy
            policies = DTypePolicyMap(default_policy=default)
            for layer in quantized:
                policies[layer.path] = layer.dtype_policy
            config["dtype"] = keras.saving.serialize_keras_object(policies)
        return config
