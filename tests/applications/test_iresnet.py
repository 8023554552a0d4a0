"""What IResNet alone promises."""

import keras

from tests.cases import small_model


def test_the_embedding_is_normalised_with_a_scale_that_is_never_trained():
    model = small_model("iresnet*")
    for copy in (model, keras.models.model_from_json(model.to_json())):
        norm = copy.get_layer("embedding_norm")
        copy.trainable = False
        copy.trainable = True
        assert [v.name for v in norm.trainable_variables] == ["beta"]
        assert "gamma" in [v.name for v in norm.non_trainable_variables]
